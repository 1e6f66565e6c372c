"""Exact order statistics by counting, against sorting everything."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.analysis.quantiles import (
    BIN_WIDTH,
    PERCENTILES,
    Batches,
    distribution,
)
from forkpoint.errors import RunError

entropies = st.lists(
    st.one_of(
        st.floats(0, 12, width=32),
        st.sampled_from([0.0, 1e-7, 0.01, 0.05, 0.1, 0.15, 0.35, 0.6719999, 2.0]),
    ),
    min_size=1,
    max_size=60,
)


def batches(values: Sequence[float], size: int = 7) -> Batches:
    array = np.array(values, dtype=np.float32)
    return lambda: (array[i : i + size] for i in range(0, len(array), size))


def test_a_distribution_by_hand() -> None:
    # 10 tokens, of which the 2 highest are kept: 2.0 and 1.0 of a sum of 4.5
    found = distribution(batches([0, 0, 0, 0.005, 0, 0.5, 1.0, 0.995, 0, 2.0]), 0.2)
    assert found.tokens == 10
    assert found.mean == pytest.approx(4.5 / 10)
    assert found.share_below == 6 / 10
    assert found.threshold == 1.0
    assert found.kept_fraction == 2 / 10
    assert found.share_of_top == pytest.approx(3.0 / 4.5)
    # sorted: 0 0 0 0 0 .005 .5 .995 1 2; the smallest x with p % of the tokens at or below it
    assert [found.percentiles[p] for p in (0, 50, 90, 95, 100)] == [0, 0, 1.0, 2.0, 2.0]
    assert found.percentiles[80] == pytest.approx(0.995)
    assert found.percentiles[55] == pytest.approx(0.005)
    # bins of 0.05 nats: [0, 0.05) holds 6, [0.5, 0.55) one, 0.995 is in the 19th, 1.0 in the 20th
    assert {i: c for i, c in enumerate(found.counts) if c} == {0: 6, 10: 1, 19: 1, 20: 1, 40: 1}
    assert found.edges[20] == 1.0


@given(values=entropies, keep=st.sampled_from([0.1, 0.2, 0.5, 1.0]), size=st.integers(1, 9))
def test_a_distribution_against_sorting(values: list[float], keep: float, size: int) -> None:
    found = distribution(batches(values, size), keep)
    ordered = np.sort(np.array(values, dtype=np.float32).astype(np.float64))
    n = len(ordered)
    k = math.ceil(Fraction(str(keep)) * n)
    assert found.threshold == ordered[n - k]
    assert found.kept_fraction == (ordered >= ordered[n - k]).mean()
    total = ordered.sum()
    assert found.share_of_top == pytest.approx(ordered[n - k :].sum() / total if total else 0.0)
    assert found.mean == pytest.approx(ordered.mean())
    for p in PERCENTILES:
        x = found.percentiles[p]
        assert x in ordered
        assert (ordered <= x).sum() * 100 >= p * n
        assert (ordered < x).sum() * 100 < max(p * n, 1)


@given(values=entropies)
def test_the_histogram_counts_every_token_between_its_edges(values: list[float]) -> None:
    found = distribution(batches(values), 0.2)
    numbers = np.array(values, dtype=np.float32).astype(np.float64)
    assert len(found.edges) == len(found.counts) + 1
    for low, high, count in zip(found.edges, found.edges[1:], found.counts, strict=False):
        assert ((numbers >= low) & (numbers < high)).sum() == count
    assert sum(found.counts) == len(numbers)
    assert found.counts[-1] > 0
    np.testing.assert_allclose(np.diff(found.edges), BIN_WIDTH)


def test_a_negative_zero_is_zero() -> None:
    assert distribution(batches([-0.0, 1.0]), 0.5).percentiles[0] == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.5])
def test_what_is_no_entropy_is_refused(bad: float) -> None:
    with pytest.raises(RunError, match="negative or not finite"):
        distribution(batches([0.5, bad]), 0.2)


def test_nothing_has_no_distribution() -> None:
    with pytest.raises(RunError, match="no token"):
        distribution(batches([]), 0.2)
