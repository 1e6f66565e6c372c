"""What counts as a right answer, and what an accuracy is measured on."""

from dataclasses import replace
from pathlib import Path

import pytest

from forkpoint.config import load_config
from forkpoint.errors import Interrupted, RewardError, RunError
from forkpoint.evaluation.compare import compare
from forkpoint.evaluation.evaluate import accuracy, evaluate_config, is_right, summed, tally
from forkpoint.evaluation.statistics import bootstrap_interval, wilson_interval
from forkpoint.runs.completions import part_files, read_completions
from forkpoint.runs.results import Evaluation, result_path
from forkpoint.types import FinishReason, Group, Rollout, Score
from tests.checkpoint_runs import SMALL, LocalScorer
from tests.conftest import make_group


def scored(serial: int, *scores: Score) -> Group:
    group = make_group(serial, rewards=[0.0] * len(scores), lengths=[3] * len(scores))
    rollouts = tuple(
        Rollout(completion=rollout.completion, score=score)
        for rollout, score in zip(group.rollouts_G, scores, strict=True)
    )
    return replace(group, rollouts_G=rollouts)


def given(verdict: float, bonus: float = 0.0) -> Score:
    """A score whose verifier comes last among its parts."""
    return Score(
        reward=verdict + bonus, verdict=verdict, parts={"bonus": bonus, "verifier": verdict}
    )


FAILED = Score(reward=None, parts={"task": None}, error="task: timeout after 4 s")
UNREADABLE = Score(reward=None, parts={"math": None})


@pytest.mark.parametrize(
    ("score", "right"),
    [
        (given(1.0), True),
        (given(1.0, -0.9), True),  # right and overlong is right
        (given(0.0, 5.0), False),  # a bonus for form does not make it right
        (given(0.5), False),
        (given(2.0), True),
        (FAILED, False),
        (UNREADABLE, False),
        (Score(reward=None), False),
    ],
)
def test_the_verdict_decides(score: Score, right: bool) -> None:
    (rollout,) = scored(0, score).rollouts_G
    assert is_right(rollout) is right


def test_one_sample_a_problem_gets_wilsons_interval() -> None:
    groups = tuple(scored(i, given(float(i < 3))) for i in range(8))
    low, high = wilson_interval(3, 8)
    found = accuracy(tally(groups), seed=0)
    assert (found.value, found.low, found.high, found.n) == (3 / 8, low, high, 8)


def test_samples_of_one_problem_are_resampled_together() -> None:
    # two problems always right, two never, one half: 5 units of 4 samples, not 20
    rights = [4, 4, 0, 0, 2]
    groups = tuple(
        scored(i, *(given(float(sample < right)) for sample in range(4)))
        for i, right in enumerate(rights)
    )
    low, high = bootstrap_interval([1.0, 1.0, 0.0, 0.0, 0.5], seed=7)
    found = accuracy(tally(groups), seed=7)
    assert (found.value, found.low, found.high, found.n) == (0.5, low, high, 5)
    assert high - low > wilson_interval(10, 20)[1] - wilson_interval(10, 20)[0]


def test_failures_count_as_wrong() -> None:
    groups = (
        scored(0, given(1.0)),
        scored(1, FAILED),
        scored(2, UNREADABLE),
        scored(3, given(1.0)),
    )
    assert accuracy(tally(groups), seed=0).value == 0.5


def test_an_accuracy_of_nothing_is_refused() -> None:
    with pytest.raises(RewardError, match="the first verifier error: task: timeout after 4 s"):
        accuracy(tally((scored(0, UNREADABLE), scored(1, FAILED))), seed=0)
    # not 0 %, when no answer to compare with could be read
    with pytest.raises(
        RewardError, match=r"no completion could be scored; .* answers are unreadable"
    ):
        accuracy(tally((scored(0, UNREADABLE), scored(1, UNREADABLE))), seed=0)


def test_parts_add_up_to_the_whole() -> None:
    groups = (
        scored(0, given(1.0)),
        scored(1, FAILED),
        scored(2, UNREADABLE),
        scored(3, given(0.5)),
    )
    parts = [tally(groups[:1]), tally(groups[1:3]), tally(groups[3:])]
    assert summed(parts) == tally(groups)
    assert parts[1].judged == 0  # which is no fault of a part alone


def test_the_share_that_the_budget_cut_is_counted() -> None:
    whole = scored(0, given(1.0), given(0.0))
    cut = replace(
        whole,
        rollouts_G=tuple(
            replace(r, completion=replace(r.completion, finish_reason=FinishReason.LENGTH))
            for r in whole.rollouts_G
        ),
    )
    assert tally((whole, whole, whole)).truncated_fraction == 0
    assert tally((whole, cut, whole)).truncated_fraction == pytest.approx(1 / 3)


# ---- going on ------------------------------------------------------------------------------------


def test_held_out_problems_judged_otherwise_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkpoint.sampling.build.build_scorer", LocalScorer)
    rewards = {
        "own": "[]",
        "weighed": '[{type="task", weight=2.0, timeout_s=9.0}]',
        "form": '[{type="format", pattern=".*"}]',
    }
    for name, given in rewards.items():
        also = [] if given == "[]" else [f"rewards={given}"]
        evaluate_config(load_config(None, [*SMALL, *also]), tmp_path / name)
    assert compare(tmp_path / "own", tmp_path / "weighed").differences[0].difference.value == 0
    with pytest.raises(RunError, match=r"on lab:game: verifier: .*task.* and .*format"):
        compare(tmp_path / "own", tmp_path / "form")


def test_an_evaluation_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkpoint.sampling.build.build_scorer", LocalScorer)
    many = ["evaluation.problems=6", "evaluation.samples=2", "rollout.batch_sequences=4"]
    config = load_config(None, [*SMALL, *many])
    folder = tmp_path / "stopped" / "completions" / "evaluation"

    def after_two_parts() -> bool:
        return (folder / "part_00001.json").exists()

    with pytest.raises(Interrupted):
        evaluate_config(config, tmp_path / "stopped", after_two_parts)
    assert not result_path(tmp_path / "stopped", Evaluation).exists()
    first = (folder / "part_00000.parquet").stat().st_mtime_ns
    found = evaluate_config(config, tmp_path / "stopped")
    assert (folder / "part_00000.parquet").stat().st_mtime_ns == first
    assert len(list(read_completions(part_files(folder)))) == 12
    assert (found.accuracy.n, found.samples) == (6, 2)
    assert found == evaluate_config(config, tmp_path / "whole") == evaluate_config(config, None)
    other = load_config(None, [*SMALL, *many, "evaluation.seed=1"])
    with pytest.raises(RunError, match=r"other settings \(evaluation.seed: 20000 -> 1\)"):
        evaluate_config(other, tmp_path / "stopped")


def test_problems_that_were_drawn_twice_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkpoint.sampling.build.build_scorer", LocalScorer)
    few = "task.parameters={numbers=2, max_number=2}"
    notes: list[str] = []
    evaluate_config(
        load_config(None, [*SMALL, "evaluation.problems=20", few]), None, note=notes.append
    )
    assert any("different problems among 20 that were drawn" in note for note in notes)
    notes.clear()
    two = load_config(None, [*SMALL, "evaluation.problems=2"])
    evaluate_config(two, tmp_path / "run", note=notes.append)
    assert notes == []
