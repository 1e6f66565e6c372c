"""Intervals against their formulas, a published value, and how often they hold the truth."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkpoint.evaluation.statistics import (
    Z_95,
    bootstrap_interval,
    paired_difference,
    wilson_interval,
)
from forkpoint.runs.results import Estimate


def test_z_is_the_point_with_two_and_a_half_percent_above() -> None:
    assert 0.5 * math.erfc(Z_95 / math.sqrt(2)) == pytest.approx(0.025, rel=1e-12)


def test_wilson_at_one_half_by_hand() -> None:
    # p = 1/2, n = 4: the centre is 1/2, and half the width is z sqrt(1/16 + z^2/64) / (1 + z^2/4)
    # = (z/8) sqrt(4 + z^2) / ((4 + z^2)/4) = z / (2 sqrt(4 + z^2))
    half = Z_95 / (2 * math.sqrt(4 + Z_95**2))
    assert wilson_interval(2, 4) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-12)


def test_wilson_at_the_ends_by_hand() -> None:
    # p = 0: centre and half width are both z^2 / 2n, so the interval is 0 .. z^2 / (n + z^2)
    low, high = wilson_interval(0, 10)
    assert low == 0.0
    assert high == pytest.approx(Z_95**2 / (10 + Z_95**2), rel=1e-12)
    low, high = wilson_interval(10, 10)
    assert low == pytest.approx(10 / (10 + Z_95**2), rel=1e-12)
    assert high == 1.0


def test_wilson_published_value() -> None:
    # Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0000, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), interval in published.items():
        assert wilson_interval(successes, n) == pytest.approx(interval, abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_solve_the_score_equation(case: tuple[int, int]) -> None:
    # the ends are the proportions q that a score test just does not reject:
    # |p - q| = z sqrt(q (1 - q) / n)
    successes, n = case
    p = successes / n
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= p <= high <= 1
    for q in (low, high):
        distance = Z_95 * math.sqrt(q * (1 - q) / n)
        assert abs(p - q) == pytest.approx(distance, rel=1e-6, abs=1e-9)


def test_nothing_measured_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert bootstrap_interval([], seed=0) == (0.0, 1.0)


@pytest.mark.parametrize("truth", [0.03, 0.3, 0.5])
def test_wilson_holds_the_truth_95_times_in_100(truth: float) -> None:
    # exactly: the binomial probability of the counts whose interval holds the truth
    n = 200
    held = sum(
        math.comb(n, k) * truth**k * (1 - truth) ** (n - k)
        for k in range(n + 1)
        if wilson_interval(k, n)[0] <= truth <= wilson_interval(k, n)[1]
    )
    assert 0.925 < held < 0.975


def shares(n: int, seed: int, *, samples: int = 8) -> list[float]:
    """Shares of right samples of problems whose difficulty varies: Beta(1, 2), mean 1/3."""
    generator = np.random.default_rng(seed)
    return (generator.binomial(samples, generator.beta(1, 2, n)) / samples).tolist()


def test_bootstrap_holds_the_truth_about_95_times_in_100() -> None:
    intervals = [bootstrap_interval(shares(60, seed), seed=seed) for seed in range(200)]
    held = sum(low <= 1 / 3 <= high for low, high in intervals)
    # 190 +- 3 sqrt(200 * 0.95 * 0.05) = 190 +- 9.2; a little less is normal for a bootstrap of 60
    assert 178 <= held <= 199


def test_bootstrap_is_near_plain_percentiles() -> None:
    # for a mean of many values the corrections are small: a tenth of the interval's width
    values = np.array(shares(300, seed=1))
    low, high = bootstrap_interval(values.tolist(), seed=0)
    picks = np.random.default_rng(5).integers(0, len(values), (20_000, len(values)))
    plain_low, plain_high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    width = plain_high - plain_low
    assert low == pytest.approx(plain_low, abs=width / 10)
    assert high == pytest.approx(plain_high, abs=width / 10)
    # and of about the textbook's width
    assert high - low == pytest.approx(2 * Z_95 * values.std(ddof=1) / math.sqrt(300), rel=0.1)


def test_bootstrap_leans_the_way_the_values_are_skewed() -> None:
    # few high shares among many zeros: further up than down, which plain normal limits are not
    values = [0.0] * 45 + [1.0] * 5
    low, high = bootstrap_interval(values, seed=0)
    mean = 0.1
    assert high - mean > 1.2 * (mean - low)


def test_bootstrap_is_drawn_from_its_seed_alone() -> None:
    values = shares(50, seed=2)
    np.random.seed(1)
    first = bootstrap_interval(values, seed=7)
    np.random.seed(2)
    assert bootstrap_interval(values, seed=7) == first
    assert bootstrap_interval(values, seed=8) != first


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_equal_values_get_wilsons_interval(value: float) -> None:
    assert bootstrap_interval([value] * 40, seed=0) == wilson_interval(40 * value, 40)
    assert bootstrap_interval([value], seed=0) == wilson_interval(value, 1)


def test_differences_that_are_equal_but_for_their_last_bit_are_equal() -> None:
    thirds = paired_difference([0, 2 / 3, 0], [1 / 3, 1, 1 / 3], seed=0)
    assert thirds == paired_difference([0, 0, 0], [1 / 3, 1 / 3, 1 / 3], seed=0)
    assert thirds.low is not None
    assert thirds.high is not None
    assert thirds.low < thirds.value < thirds.high
    shares_a, shares_b = [0.3, 0.1, 0.8, 0.5] * 8, [0.2, 0.0, 0.7, 0.4] * 8
    equal = paired_difference([0.1] * 32, [0.0] * 32, seed=0)
    assert paired_difference(shares_a, shares_b, seed=0) == equal


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 8).map(lambda k: k / 8), min_size=1, max_size=12),
    st.integers(0, 3),
)
def test_bootstrap_stays_in_bounds_and_warns_of_nothing(values: list[float], seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = bootstrap_interval(values, seed=seed)
    assert 0 <= low < high <= 1
    assert low <= np.mean(values) <= high


def test_estimate_for_people_and_files() -> None:
    estimate = Estimate(value=0.2931, low=0.25649, high=0.3342, n=256)
    assert estimate.percent() == "29.3 % [25.6, 33.4]"
    assert estimate.model_dump() == {"value": 0.2931, "low": 0.25649, "high": 0.3342, "n": 256}
