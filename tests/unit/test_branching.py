"""The branching experiment: what is asked of the engine, what comes of it, and its budget."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from forkpoint.analysis.branch_points import Answer, draw_pairs
from forkpoint.analysis.branching import BranchSettings, measure_branching
from forkpoint.analysis.continuations import Continuer, Place
from forkpoint.config import load_config
from forkpoint.errors import ConfigError, Interrupted, ModelError, RunError
from forkpoint.lab import GameWorld, truth_of
from forkpoint.runs.completions import StoredCompletion, read_completions
from forkpoint.runs.results import Branching, GapGroup, read_result, result_path
from forkpoint.sampling import SampleRequest
from forkpoint.sampling.base import SamplingSettings
from forkpoint.tasks.lab import LabTask
from forkpoint.types import Completion, FinishReason, Problem, Prompt, Score
from tests.checkpoint_runs import SMALL, LocalScorer
from tests.conftest import EOS, NumberTokenizer

PROMPT = Prompt(problem=Problem(id="p", prompt="n3"), token_ids=(3,))


class CountingEngine:
    """Ends every answer with its sample's number and an end of text; notes what it was asked."""

    captures_entropy = True
    same_weights = True

    def __init__(self) -> None:
        self.requests: list[SampleRequest] = []
        self.settings: list[SamplingSettings] = []

    def sample(
        self,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        self.requests += requests
        self.settings.append(settings)
        return [
            Completion(
                token_ids=np.array((20 + r.sample, EOS)),
                logprobs=np.array((-0.5, -0.25)),
                entropies=np.array((0.1, 0.2)),
                finish_reason=FinishReason.STOP,
                text=f"n{20 + r.sample}",
            )
            for r in requests
        ]

    def close(self) -> None:
        pass


class TableScorer:
    """Rewards texts as a table says; None for the others."""

    def __init__(self, rewards: Mapping[str, float]) -> None:
        self.rewards = rewards
        self.seen: list[Completion] = []

    def score(self, pairs: Sequence[tuple[Problem, Completion]], *_: Any) -> list[Score]:
        self.seen += [completion for _, completion in pairs]
        return [Score(reward=self.rewards.get(completion.text)) for _, completion in pairs]


def continuer(scorer: TableScorer, *, limit: int = 10) -> tuple[Continuer, CountingEngine]:
    engine = CountingEngine()
    loaded = SimpleNamespace(tokenizer=NumberTokenizer(), eos_ids=(EOS,))
    parts: Any = SimpleNamespace(engine=engine, scorer=scorer, loaded=loaded)
    settings = SamplingSettings(
        max_new_tokens=limit, temperature=1.0, seed=0, step=0, purpose="branch"
    )
    return Continuer(parts=parts, settings=settings, continuations=2), engine


def place(*choices: tuple[int, float], prefix: tuple[int, ...] = (5, 6)) -> Place:
    answer = Completion(
        token_ids=np.array((*prefix, 7)),
        logprobs=np.full(len(prefix) + 1, -0.1),
        entropies=None,
        finish_reason=FinishReason.LENGTH,
        text="",
    )
    return Place(prompt=PROMPT, answer=answer, position=len(prefix), choices=choices, serial=7)


def never() -> bool:
    return False


# ---- answers that begin alike --------------------------------------------------------------------


def test_whole_answers_are_rewarded_and_branches_kept_apart() -> None:
    scorer = TableScorer(
        {"n5 n6 n8 n20": 1.0, "n5 n6 n8 n21": 0.0, "n5 n6 n9 n22": 0.5, "n5 n6 n9 n23": 0.25}
    )
    made, engine = continuer(scorer)
    branches, spent = made.follow(place((8, -0.2), (9, -1.8)), never)
    assert [b.rewards for b in branches] == [(1.0, 0.0), (0.5, 0.25)]
    assert [b.certain for b in branches] == [False, False]
    assert spent == 8  # 2 branches x 2 endings x 2 tokens
    # prompt, prefix and token are read; streams differ by sample; prefix and token use up room
    assert [r.prompt.token_ids for r in engine.requests] == [(3, 5, 6, 8)] * 2 + [(3, 5, 6, 9)] * 2
    assert [(r.serial, r.sample) for r in engine.requests] == [(7, i) for i in range(4)]
    assert [s.max_new_tokens for s in engine.settings] == [7]
    first = scorer.seen[0]
    assert first.token_ids.tolist() == [5, 6, 8, 20, EOS]
    assert first.logprobs.tolist() == pytest.approx([-0.1, -0.1, -0.2, -0.5, -0.25])
    assert first.finish_reason is FinishReason.STOP


def test_an_end_of_text_ends_the_answer_there() -> None:
    scorer = TableScorer({"n5 n6": 1.0, "n5 n6 n9 n22": 0.0, "n5 n6 n9 n23": 0.0})
    made, engine = continuer(scorer)
    at = place((EOS, -0.2), (9, -1.8))
    branches, spent = made.follow(at, never)
    assert (branches[0].rewards, branches[0].certain) == ((1.0,), True)
    assert (branches[1].rewards, branches[1].certain) == ((0.0, 0.0), False)
    assert spent == 4
    assert made.worst_case(at) == 2 * 7  # one open branch, two endings, room for 7
    assert scorer.seen[0].token_ids.tolist() == [5, 6, EOS]
    assert scorer.seen[0].finish_reason is FinishReason.STOP
    assert len(engine.requests) == 2


def test_where_there_is_no_room_nothing_is_drawn() -> None:
    scorer = TableScorer({"n5 n6 n8": 0.0, "n5 n6 n9": 1.0})
    made, engine = continuer(scorer, limit=3)
    at = place((8, -0.2), (9, -1.8))
    branches, spent = made.follow(at, never)
    assert [b.rewards for b in branches] == [(0.0,), (1.0,)]
    assert all(b.certain for b in branches)
    assert (spent, made.worst_case(at), engine.requests) == (0, 0, [])
    assert {c.finish_reason for c in scorer.seen} == {FinishReason.LENGTH}


def test_samples_without_a_reward_are_left_out() -> None:
    made, _ = continuer(TableScorer({"n5 n6 n8 n20": 1.0}))
    branches, _ = made.follow(place((8, -0.2), (9, -1.8)), never)
    assert [b.rewards for b in branches] == [(1.0,), ()]
    assert not any(b.measured for b in branches)


# ---- where to branch -----------------------------------------------------------------------------


def answer(number: int, entropies: Sequence[float], *, top: Sequence[int] = (4, 8, 9)) -> Answer:
    count = len(entropies)
    completion = Completion(
        token_ids=np.arange(8, 8 + count),
        logprobs=np.full(count, -0.5),
        entropies=np.array(entropies),
        finish_reason=FinishReason.STOP,
        text="",
        top_ids=np.tile(np.array(top), (count, 1)),
        top_logprobs=np.tile(np.array([-0.1, -2.0, -3.0]), (count, 1)),
    )
    return Answer(prompt=PROMPT, number=number, sample=0, completion=completion)


def test_one_position_of_each_kind_from_answers_that_have_both() -> None:
    answers = [
        answer(0, [0.9, 0.1, 0.1, 0.1, 0.1]),
        answer(1, [0.2, 0.2]),  # only low
        answer(2, [0.8, 0.7]),  # only high
        answer(3, [0.1, 0.1, 0.1, 0.6, 0.1, 0.1]),
    ]  # 15 tokens, k = ceil(0.25 * 15) = 4
    pairs = draw_pairs(answers, keep_fraction=0.25, seed=0)
    assert sorted((p.answer.number, p.high) for p in pairs) == [(0, 0), (3, 3)]
    assert all(p.low != p.high for p in pairs)


def test_positions_and_order_are_drawn_evenly_and_from_the_seed() -> None:
    answers = [answer(i, [0.9, 0.8, 0.1, 0.1, 0.1]) for i in range(200)]
    pairs = draw_pairs(answers, keep_fraction=0.4, seed=1)
    assert len(pairs) == 200
    highs = np.bincount([p.high for p in pairs], minlength=5)
    lows = np.bincount([p.low for p in pairs], minlength=5)
    # 100 +- 3 sqrt(200 / 4) = 21;  66.7 +- 3 sqrt(200 * 2 / 9) = 20
    assert highs[:2] == pytest.approx([100, 100], abs=21)
    assert lows[2:] == pytest.approx([66.7] * 3, abs=20)
    assert highs[2:].sum() == lows[:2].sum() == 0
    order = [p.answer.number for p in pairs]
    assert sorted(order) == list(range(200))
    assert order != sorted(order)
    again = draw_pairs(answers, keep_fraction=0.4, seed=1)
    assert [(p.answer.number, p.high, p.low) for p in again] == [
        (p.answer.number, p.high, p.low) for p in pairs
    ]
    assert [p.answer.number for p in draw_pairs(answers, keep_fraction=0.4, seed=2)] != order


def test_alternatives_are_the_likeliest_tokens_but_the_kept_one() -> None:
    one = answer(3, [0.5, 0.5, 0.5])  # tokens 8, 9, 10; the likeliest everywhere 4, 8, 9
    found = one.place(1, "low", 1)
    assert found.choices == ((9, -0.5), (4, pytest.approx(-0.1)))
    assert (found.position, found.serial) == (1, 7)
    both = one.place(0, "high", 2)
    assert [token for token, _ in both.choices] == [8, 4, 9]
    assert both.serial == 6
    assert [token for token, _ in one.place(2, "low", 2).choices] == [10, 4, 8]


def test_impossible_tokens_are_no_alternatives() -> None:
    one = answer(0, [0.0])
    assert one.completion.top_logprobs is not None
    one.completion.top_logprobs[0] = [0.0, -np.inf, -np.inf]
    assert [token for token, _ in one.place(0, "low", 2).choices] == [8, 4]


# ---- the whole experiment in the laboratory ------------------------------------------------------

CONFIG = load_config(None, [*SMALL, "evaluation.problems=10", "evaluation.samples=2"])
SETTINGS = BranchSettings(budget_tokens=2600, continuations=3)


@pytest.fixture(scope="module", autouse=True)
def _score_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forkpoint.sampling.build.build_scorer", LocalScorer)
        yield


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Branching]:
    """Not to be changed."""
    root = tmp_path_factory.mktemp("branching") / "out"
    return root, measure_branching(CONFIG, SETTINGS, root)


def first_answers(root: Path) -> list[StoredCompletion]:
    folder = root / "completions" / "branching"
    return list(read_completions(sorted(folder.glob("part_*.parquet"))))


def test_the_budget_is_counted_and_never_passed(measured: tuple[Path, Branching]) -> None:
    root, found = measured
    files = sorted((root / "completions" / "branching").glob("pair_*"))
    pairs = [json.loads(path.read_text()) for path in files]
    spent = sum(len(row.completion) for row in first_answers(root))
    assert found.spent_tokens == spent + sum(pair["spent"] for pair in pairs)
    assert found.spent_tokens <= SETTINGS.budget_tokens
    assert found.high.positions == found.low.positions == len(pairs) - found.pairs_left_out
    assert 3 <= len(pairs) < found.pairs_possible
    assert read_result(result_path(root, Branching), Branching) == found


def test_positions_are_what_they_are_called(measured: tuple[Path, Branching]) -> None:
    root, found = measured
    tokens = {(r.prompt_id, r.sample): r.completion.token_ids for r in first_answers(root)}
    rows = found.replacements
    high = [row.entropy for row in rows if row.kind == "high"]
    low = [row.entropy for row in rows if row.kind == "low"]
    assert min(high) > max(low)
    for row in rows:
        assert tokens[row.prompt_id, row.sample][row.position] == row.token_id
        assert row.alternative_id != row.token_id
        assert row.alternative_weight == 1.0
        assert row.continuations_alternative in (1, 3)


def test_breaking_the_rules_of_the_game_costs_everything(
    measured: tuple[Path, Branching],
) -> None:
    # where only one word may stand, any other makes the answer illegal: its value is 0
    root, found = measured
    words = {
        (row.prompt_id, row.sample): [*row.completion.text.split(), "<eos>"]
        for row in first_answers(root)
    }
    held_out = LabTask(CONFIG.task).held_out(10, CONFIG.evaluation.seed)  # type: ignore[arg-type]
    columns = {problem.id: problem.columns for problem in held_out}
    forced = 0
    for row in found.replacements:
        game = columns[row.prompt_id]
        said = words[row.prompt_id, row.sample]
        truth = truth_of(GameWorld(), game, said)
        if row.position < truth.legal_words and not truth.forks[row.position]:
            forced += 1
            assert row.value_alternative == 0.0
    assert forced >= 3


def test_it_goes_on_after_a_stop_and_with_a_larger_budget(
    measured: tuple[Path, Branching], tmp_path: Path
) -> None:
    _, summary = measured
    folder = tmp_path / "completions" / "branching"

    def after_two_pairs() -> bool:
        return (folder / "pair_00001.json").exists()

    with pytest.raises(Interrupted):
        measure_branching(CONFIG, SETTINGS, tmp_path, should_stop=after_two_pairs)
    assert len(list(folder.glob("pair_*"))) == 2
    assert measure_branching(CONFIG, SETTINGS, tmp_path) == summary
    more = measure_branching(CONFIG, replace(SETTINGS, budget_tokens=3200), tmp_path)
    count = len(summary.replacements)
    assert len(more.replacements) > count
    assert more.replacements[:count] == summary.replacements
    # what is there already does not count for a smaller budget
    assert measure_branching(CONFIG, SETTINGS, tmp_path) == summary
    with pytest.raises(RunError, match="other settings"):
        measure_branching(CONFIG, replace(SETTINGS, continuations=5), tmp_path)


def test_several_alternatives_have_a_row_each_and_share_a_position(tmp_path: Path) -> None:
    settings = replace(SETTINGS, budget_tokens=2000, alternatives=3, continuations=2)
    found = measure_branching(CONFIG, settings, tmp_path)
    rows, count = found.replacements, found.high.positions
    assert count >= 1
    assert len(rows) == 3 * 2 * count
    first = rows[:3]
    assert len({(r.prompt_id, r.sample, r.position) for r in first}) == 1
    assert sum(r.alternative_weight for r in first) == pytest.approx(1.0)
    ratio = first[0].alternative_weight / first[1].alternative_weight
    gap = first[0].alternative_logprob - first[1].alternative_logprob
    assert ratio == pytest.approx(np.exp(gap))
    # the group's numbers are the means of the rows' gaps by weight
    high = [r for r in rows if r.kind == "high"]
    squared = sum(r.alternative_weight * r.squared_gap for r in high) / count
    assert found.high.squared_gap is not None
    assert found.high.squared_gap.value == pytest.approx(squared)
    resampled = sum(np.exp(r.alternative_logprob) * r.squared_gap for r in high) / count
    assert found.high.resampled_squared_gap is not None
    assert found.high.resampled_squared_gap.value == pytest.approx(resampled)


# ---- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget_tokens": 1199}, r"10 problems x 2 samples of up to 60 tokens are 1200"),
        ({"continuations": 1}, "--continuations must be at least 2"),
        ({"alternatives": 0}, "--alternatives must be at least 1"),
        ({"keep_fraction": 1.0}, "--keep-fraction 1 is not in"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        measure_branching(CONFIG, replace(SETTINGS, **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_budget_for_the_answers_alone_measures_nothing(tmp_path: Path) -> None:
    # the first pair may need 2 x 2 x 100 tokens for each one that is left: more than there are
    settings = replace(SETTINGS, budget_tokens=1200, continuations=100)
    summary = measure_branching(CONFIG, settings, tmp_path)
    assert summary.replacements == ()
    assert 0 < summary.spent_tokens <= 1200
    nothing = GapGroup(positions=0, gap=None, squared_gap=None, resampled_squared_gap=None)
    assert summary.high == summary.low == nothing
    assert summary.difference is None


def test_a_start_that_failed_can_be_made_with_other_settings(tmp_path: Path) -> None:
    typo = load_config(None, [*SMALL, 'model.path="./nowhere"', "evaluation.problems=1"])
    with pytest.raises(ModelError, match="nowhere"):
        measure_branching(typo, SETTINGS, tmp_path)
    one = load_config(None, [*SMALL, "evaluation.problems=1"])
    summary = measure_branching(one, replace(SETTINGS, budget_tokens=60), tmp_path)
    assert summary.model == "lab:game"
    assert json.loads((tmp_path / "config.json").read_text())["model"]["path"] == "lab:game"


def test_a_pair_whose_verifier_failed_is_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(LocalScorer):
        def score(self, pairs: Sequence[tuple[Problem, Completion]], *_: Any) -> list[Score]:
            return [Score(reward=None, parts={"task": None}, error="timeout") for _ in pairs]

    monkeypatch.setattr("forkpoint.sampling.build.build_scorer", Failing)
    summary = measure_branching(CONFIG, replace(SETTINGS, budget_tokens=1500), tmp_path)
    assert summary.replacements == ()
    assert summary.pairs_left_out >= 1
