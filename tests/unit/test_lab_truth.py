"""The laboratory's truth: forks and entropies of a text by hand and by enumeration, and how well
measured entropy finds the forks."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from forkpoint.lab import EOS, GameWorld, fork_detection, truth_of
from forkpoint.lab.world import demonstrate
from forkpoint.randomness import stream
from tests.unit.test_lab import SMALL, demonstrations, next_words, said

# ---- truth --------------------------------------------------------------------------------------


def test_truth_by_hand() -> None:
    # pick (2/5, 3/5), an operator of two, 25 % / 75 % of trying again; all else is forced
    words = said("pick n1 and n2 : n1 * n2 = n2 ; check n2 = n3 no stop")
    truth = truth_of(SMALL, {"numbers": (1, 2), "goal": 3}, [*words, EOS])
    first = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    again = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    expected = dict.fromkeys(range(len(words) + 1), 0.0)
    expected |= {1: first, 6: math.log(2), 16: again}
    assert truth.entropies == pytest.approx(tuple(expected.values()))
    assert [i for i, fork in enumerate(truth.forks) if fork] == [1, 6, 16]
    assert truth.legal_words == len(words) + 1


def test_truth_ends_at_the_first_illegal_word() -> None:
    truth = truth_of(SMALL, {"numbers": (1, 2), "goal": 3}, ["pick", "n7", "and", "n2"])
    # what could have stood in its place is still known: H(2/5, 3/5)
    first = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    assert truth.entropies[:2] == pytest.approx((0, first))
    assert [math.isnan(h) for h in truth.entropies] == [False, False, True, True]
    assert truth.forks == (False, True, False, False)
    assert truth.legal_words == 1


def test_truth_of_words_after_the_end() -> None:
    words = said("pick n1 and n2 : n1 + n2 = n3 ; check n3 = n3 yes <eos>")
    truth = truth_of(SMALL, {"numbers": (1, 2), "goal": 3}, [*words, "pick", "pick"])
    assert truth.legal_words == len(words)
    assert truth.entropies[len(words)] == 0
    assert math.isnan(truth.entropies[-1])


def texts(walk_words: list[str], numbers: Sequence[int], goal: int) -> dict[tuple[str, ...], float]:
    """Every text of the small world with its probability."""
    nexts = next_words(SMALL, numbers, goal, walk_words)
    if not nexts:
        return {tuple(walk_words): 1.0}
    return {
        text: p * q
        for word, p in nexts.items()
        for text, q in texts([*walk_words, word], numbers, goal).items()
    }


def test_entropies_are_those_of_the_demonstrations() -> None:
    # Chain rule: the entropy of a whole text is the expected sum of the entropies at its words.
    probability = texts([], (1, 2), 3)
    assert sum(probability.values()) == pytest.approx(1)
    exact = -sum(p * math.log(p) for p in probability.values())
    sums = {
        text: sum(truth_of(SMALL, {"numbers": (1, 2), "goal": 3}, text).entropies)
        for text in probability
    }
    assert sum(p * sums[text] for text, p in probability.items()) == pytest.approx(exact)
    # and drawn ones come as often as they should
    draws = 1500
    drawn = Counter(
        tuple(
            demonstrate(SMALL, {"numbers": (1, 2), "goal": 3}, stream(5, "test demonstration", n))
        )
        for n in range(draws)
    )
    assert drawn.keys() <= probability.keys()
    observed = [drawn[text] for text in probability]
    expected = [draws * p for p in probability.values()]
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    estimates = np.array([sums[text] for text in drawn.elements()])
    error = estimates.std() / math.sqrt(draws)
    assert error < 0.03
    assert abs(estimates.mean() - exact) < 4 * error


def test_a_fifth_of_the_words_are_forks_and_more_when_less_is_spelled_out() -> None:
    shares = []
    for verbosity in (2, 1, 0):
        world = GameWorld(verbosity=verbosity)
        truths = [
            truth_of(world, {"numbers": d[0], "goal": d[1]}, d[2])
            for d in demonstrations(world, 100)
        ]
        assert all(t.legal_words == len(t.forks) for t in truths)
        forks = [fork for t in truths for fork in t.forks]
        shares.append(sum(forks) / len(forks))
    assert GameWorld().verbosity == 2
    assert 0.15 < shares[0] < 0.25
    assert shares[0] < shares[1] < shares[2]


# ---- fork detection -----------------------------------------------------------------------------


def test_fork_detection_by_hand_with_ties() -> None:
    # k = ceil(0.5 * 4) = 2: the 0.9, a fork, and one of the two at 0.5, of which one is a fork:
    # 1.5 expected hits, precision 1.5 / 2, recall 1.5 / 2. Thresholds 0.9: precision 1, recall 1/2;
    # 0.5: precision 2/3, recall 1: AP = 1/2 * 1 + 1/2 * 2/3
    found = fork_detection([0.5, 0.1, 0.9, 0.5], [False, False, True, True], 0.5)
    assert (found.precision, found.recall) == (0.75, 0.75)
    assert found.average_precision == pytest.approx(5 / 6)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.booleans()), max_size=6),
    keep_fraction=st.sampled_from([0.07, 0.2, 0.5, 1.0]),
)
def test_fork_detection_is_a_mean_over_the_orders_of_equals(
    rows: list[tuple[float, bool]], keep_fraction: float
) -> None:
    entropies, forks = [h for h, _ in rows], [fork for _, fork in rows]
    found = fork_detection(entropies, forks, keep_fraction)
    if not any(forks):
        assert all(map(math.isnan, (found.precision, found.recall, found.average_precision)))
        return
    k = math.ceil(round(keep_fraction * len(rows), 9))
    hits = []  # over every order that has the entropies falling
    for order in itertools.permutations(rows):
        if all(a[0] >= b[0] for a, b in itertools.pairwise(order)):
            hits.append(sum(fork for _, fork in order[:k]))
    mean = sum(hits) / len(hits)
    assert found.precision == pytest.approx(mean / k)
    assert found.recall == pytest.approx(mean / sum(forks))
    precision_at, recall_before = 0.0, 0.0
    for edge in sorted(set(entropies), reverse=True):
        kept = [fork for h, fork in rows if h >= edge]
        recall = sum(kept) / sum(forks)
        precision_at += (recall - recall_before) * sum(kept) / len(kept)
        recall_before = recall
    assert found.average_precision == pytest.approx(precision_at)


def test_fork_detection_keeps_the_fraction_as_it_is_written() -> None:
    # 0.07 * 100 is 7.000000000000001 in binary: 7 are kept and not 8
    found = fork_detection(list(range(100)), [h >= 93 for h in range(100)], 0.07)
    assert (found.precision, found.recall) == (1, 1)
