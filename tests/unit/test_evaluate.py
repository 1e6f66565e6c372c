"""What counts as a right answer, and what an accuracy is measured on."""

from dataclasses import replace

import pytest

from forkpoint.errors import RewardError
from forkpoint.evaluation.evaluate import accuracy, is_right, summed, tally
from forkpoint.evaluation.statistics import bootstrap_interval, wilson_interval
from forkpoint.types import Group, Rollout, Score
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
