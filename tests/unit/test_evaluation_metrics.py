"""pass@k, maj@k and the sampling error: by hand, and against going through every choice."""

import math
import random
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.errors import ConfigError
from forkpoint.evaluation.metrics import counts, majority_at, pass_at, sampling_error


def test_the_k_that_are_reported() -> None:
    assert counts(1) == [1]
    assert counts(2) == [1, 2]
    assert counts(6) == [1, 2, 4, 6]
    assert counts(16) == [1, 2, 4, 8, 16]


# ---- pass@k --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "n", "k", "expected"),
    [
        (1, 4, 1, 0.25),
        (1, 4, 2, 0.5),  # 1 - C(3, 2) / C(4, 2) = 1 - 3/6
        (2, 4, 2, 5 / 6),  # 1 - C(2, 2) / 6
        (3, 5, 2, 0.9),  # 1 - C(2, 2) / C(5, 2)
        (3, 5, 3, 1.0),  # two wrong ones cannot be three
        (0, 4, 4, 0.0),
        (1, 4, 4, 1.0),
        (4, 16, 8, 1 - 495 / 12870),  # C(12, 8) = 495, C(16, 8) = 12870
    ],
)
def test_pass_at_k_by_hand(right: int, n: int, k: int, expected: float) -> None:
    assert pass_at(right, n, k) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(n: int) -> None:
    for right in range(n + 1):
        verdicts = [True] * right + [False] * (n - right)
        for k in range(1, n + 1):
            choices = list(combinations(verdicts, k))
            share = sum(any(chosen) for chosen in choices) / len(choices)
            assert pass_at(right, n, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_1_is_the_accuracy_and_no_float_is_too_small() -> None:
    assert pass_at(37, 64, 1) == pytest.approx(37 / 64)
    assert pass_at(1, 5000, 2500) == pytest.approx(0.5)  # C(5000, 2500) is beyond 1e308


@pytest.mark.parametrize(("right", "n", "k"), [(1, 4, 5), (1, 4, 0), (1, 4, -1), (5, 4, 2)])
def test_more_answers_than_there_are_are_refused(right: int, n: int, k: int) -> None:
    with pytest.raises(ConfigError):
        pass_at(right, n, k)
    with pytest.raises(ConfigError):
        majority_at(right, [n - right], 0, k)


# ---- maj@k ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "wrong", "silent", "k", "expected"),
    [
        (2, [1, 1], 0, 4, 1.0),  # two votes beat one and one
        (2, [2], 0, 4, 0.5),  # a tie of two
        (1, [1, 1, 1], 0, 4, 0.25),  # a tie of four
        (1, [2, 1], 0, 4, 0.0),
        (1, [], 3, 4, 1.0),  # who is silent does not vote
        (0, [1], 3, 4, 0.0),
        (0, [], 4, 4, 0.0),  # nobody answers
        (2, [1, 1], 0, 1, 0.5),  # of one answer the majority is it
        # two of {R, R, a, b}: RR 1, four pairs R-wrong a half each, ab 0: (1 + 4/2) / 6
        (2, [1, 1], 0, 2, 0.5),
        # two of {R, a, -}: Ra a half, R- 1, a- 0: 1.5 / 3
        (1, [1], 1, 2, 0.5),
        # three of {R, R, a, a}: RRa twice 1, Raa twice 0
        (2, [2], 0, 3, 0.5),
    ],
)
def test_majority_by_hand(
    right: int, wrong: list[int], silent: int, k: int, expected: float
) -> None:
    assert majority_at(right, wrong, silent, k) == pytest.approx(expected, abs=1e-15)


def by_going_through_every_choice(right: int, wrong: list[int], silent: int, k: int) -> float:
    answers: list[int | None] = [0] * right + [None] * silent
    for number, size in enumerate(wrong, start=1):
        answers += [number] * size
    total, choices = 0.0, 0
    for chosen in combinations(answers, k):
        choices += 1
        votes = Counter(answer for answer in chosen if answer is not None)
        leading = [a for a, count in votes.items() if count == max(votes.values())]
        total += (0 in leading) / len(leading) if leading else 0.0
    return total / choices


@given(
    right=st.integers(0, 5),
    wrong=st.lists(st.integers(1, 4), max_size=4).filter(lambda sizes: sum(sizes) <= 7),
    silent=st.integers(0, 2),
    data=st.data(),
)
def test_majority_is_the_mean_over_every_choice(
    right: int, wrong: list[int], silent: int, data: st.DataObject
) -> None:
    n = right + sum(wrong) + silent
    if n == 0:
        return
    k = data.draw(st.integers(1, n))
    expected = by_going_through_every_choice(right, wrong, silent, k)
    assert majority_at(right, wrong, silent, k) == pytest.approx(expected, abs=1e-12)


def test_majority_of_one_is_the_accuracy() -> None:
    assert majority_at(5, [3, 1], 2, 1) == pytest.approx(5 / 11)


# ---- the error of drawing ------------------------------------------------------------------------


def test_the_sampling_error_by_hand() -> None:
    # shares 1/4 and 1: variances of the means (1/4)(3/4)/3 = 1/16 and 0; sqrt(1/16) / 2
    assert sampling_error([[True, False, False, False], [True] * 4]) == pytest.approx(1 / 8)
    assert sampling_error([[True, False]]) == pytest.approx(0.5)  # sqrt(1/4 / 1)
    assert sampling_error([[True, True], [False, False]]) == 0.0
    assert sampling_error([[True], [False]]) is None  # one draw says nothing of its own spread


def test_the_sampling_error_is_that_of_drawing_again() -> None:
    # the same problems, evaluated 4000 times: the spread of the accuracies, and the mean of the
    # squared errors, each of which one evaluation says of itself
    draws, chances, n = random.Random(0), (0.1, 0.5, 0.9), 8
    accuracies, squares = [], []
    for _ in range(4000):
        right_PG = [[draws.random() < chance for _ in range(n)] for chance in chances]
        accuracies.append(sum(map(sum, right_PG)) / (n * len(chances)))
        squares.append((sampling_error(right_PG) or 0.0) ** 2)
    mean = sum(accuracies) / len(accuracies)
    spread = sum((a - mean) ** 2 for a in accuracies) / (len(accuracies) - 1)
    truth = sum(c * (1 - c) / n for c in chances) / len(chances) ** 2
    assert spread == pytest.approx(truth, rel=0.1)
    assert math.fsum(squares) / len(squares) == pytest.approx(truth, rel=0.02)
