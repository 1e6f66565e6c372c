"""Overlap, change by bin and percentiles, against numbers worked out by hand and naive oracles."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.analysis.pattern import (
    PERCENTILES,
    TokenIndex,
    change_by_bin,
    overlaps,
    percentiles,
    token_index,
    top_tokens,
)
from forkpoint.analysis.resampling import (
    RESAMPLES,
    percentile_interval,
    ratio_intervals,
    resampled_ratios,
)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def one_prompt_each(tokens: int, prompts: int) -> TokenIndex:
    """``prompts`` completions of equal length, of a prompt each."""
    return token_index([f"p{i}" for i in range(prompts)], [tokens // prompts] * prompts)


# ---- where tokens stand --------------------------------------------------------------------------


def test_tokens_know_their_prompt_completion_and_position() -> None:
    index = token_index(["a", "b", "a"], [2, 0, 3])
    assert index.prompt_T.tolist() == [0, 0, 0, 0, 0]
    assert index.sequence_T.tolist() == [0, 0, 2, 2, 2]
    assert index.position_T.tolist() == [0, 1, 0, 1, 2]
    assert index.num_prompts == 2
    assert index.sums(floats(1, 2, 3, 4, 5)).tolist() == [15, 0]


# ---- Table 1 -------------------------------------------------------------------------------------


def test_overlap_by_hand() -> None:
    index = one_prompt_each(10, 2)
    base = floats(0.9, 0.8, 0.1, 0.1, 0.1, 0.7, 0.6, 0.1, 0.1, 0.1)
    final = floats(0.9, 0.1, 0.8, 0.1, 0.1, 0.7, 0.6, 0.1, 0.1, 0.1)
    tops = [top_tokens(x, index, 0.4) for x in (base, final)]  # k = 4
    assert np.flatnonzero(tops[0]).tolist() == [0, 1, 5, 6]
    assert np.flatnonzero(tops[1]).tolist() == [0, 2, 5, 6]
    with_base = overlaps(tops, tops[0], index, seed=0)
    assert with_base[0] is not None
    assert (with_base[0].value, with_base[0].low, with_base[0].high) == (1.0, 1.0, 1.0)
    assert with_base[1] is not None
    # 3 of 4; of the first prompt alone 1 of 2, of the second alone 2 of 2
    assert (with_base[1].value, with_base[1].low, with_base[1].high) == (0.75, 0.5, 1.0)


def test_overlap_is_symmetric_also_in_its_interval() -> None:
    generator = np.random.default_rng(0)
    index = token_index([f"p{i}" for i in range(12)], generator.integers(1, 40, 12).tolist())
    a, b = (
        top_tokens(generator.random(len(index.prompt_T)).astype(np.float32), index, 0.2)
        for _ in range(2)
    )
    assert overlaps([a], b, index, seed=1) == overlaps([b], a, index, seed=1)


def test_equal_entropies_are_kept_in_the_order_of_completion_and_position() -> None:
    index = token_index(["a", "b"], [3, 2])
    top = top_tokens(floats(0.5, 0.5, 0.5, 0.5, 0.5), index, 0.5)  # k = ceil 2.5
    assert top.tolist() == [True, True, True, False, False]


@given(st.integers(1, 400), st.sampled_from([0.2, 0.07, 0.5]))
def test_exactly_k_tokens_are_kept(count: int, keep: float) -> None:
    values = np.random.default_rng(count).integers(0, 4, count).astype(np.float32)  # many ties
    top = top_tokens(values, token_index(["p"], [count]), keep)
    hundredths = round(100 * keep)
    assert top.sum() == -(-hundredths * count // 100)
    assert values[top].min() >= values[~top].max(initial=0)


def test_chance_level_is_the_keep_fraction() -> None:
    generator = np.random.default_rng(4)
    index = one_prompt_each(40_000, 100)
    a, b = (top_tokens(generator.random(40_000).astype(np.float32), index, 0.2) for _ in range(2))
    (found,) = overlaps([a], b, index, seed=0)
    assert found is not None
    # hypergeometric: sd of the share = sqrt(0.2 * 0.8 * 0.8 / 8000) = 0.004
    assert found.value == pytest.approx(0.2, abs=0.016)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.004, rel=0.35)


# ---- figure 4 ------------------------------------------------------------------------------------


def test_change_by_bin_by_hand() -> None:
    # 40 tokens of base entropy 0, 0.01, .., 0.39 in a mixed order: two a bin
    order = np.random.default_rng(0).permutation(40)
    base = (order / 100).astype(np.float32)
    final = base + (order // 2).astype(np.float32)  # bin b rises by b nats
    found = change_by_bin(base, final, token_index(["a", "b"], [15, 25]), seed=0)
    assert [b.tokens for b in found] == [2] * 20
    assert [b.change.value for b in found] == pytest.approx(list(range(20)), abs=1e-5)
    assert [b.from_percentile for b in found] == [5 * i for i in range(20)]
    assert found[3].to_percentile == 20
    assert (found[3].lowest_base_entropy, found[3].highest_base_entropy) == pytest.approx(
        (0.06, 0.07)
    )


def test_bins_of_few_tokens_are_left_out() -> None:
    base = floats(0.1, 0.2, 0.3)
    found = change_by_bin(base, base + 1, token_index(["a"], [3]), seed=0)
    # ranks 0, 1, 2 of 3: bins floor(20 r / 3) = 0, 6, 13
    assert [b.from_percentile for b in found] == [0, 30, 65]
    assert [b.change.value for b in found] == pytest.approx([1, 1, 1])


def test_the_bins_nest_with_the_top_set_and_ties_go_the_same_way() -> None:
    values = np.random.default_rng(3).integers(0, 5, 200).astype(np.float32)
    index = one_prompt_each(200, 4)
    # the final entropy is 1 on the top 20 % and 0 elsewhere: the four upper bins see it, no other
    top = top_tokens(values, index, 0.2)
    found = change_by_bin(values, values + top, index, seed=0)
    assert [b.change.value for b in found] == pytest.approx([0.0] * 16 + [1.0] * 4)


def test_interval_of_a_bin_resamples_prompts() -> None:
    # all 20 tokens of a change by 1, of b by 3; one token of each in every bin
    base = np.tile(np.arange(20, dtype=np.float32), 2)
    final = base + np.repeat(floats(1, 3), 20)
    found = change_by_bin(base, final, token_index(["a", "b"], [20, 20]), seed=0)
    assert {(b.change.value, b.change.low, b.change.high) for b in found} == {(2.0, 1.0, 3.0)}


# ---- figure 5 ------------------------------------------------------------------------------------


def test_percentiles_are_numpys_and_the_extremes_have_no_interval() -> None:
    values = np.random.default_rng(1).exponential(1.0, 5000).astype(np.float32)
    found = percentiles(values, one_prompt_each(5000, 50), seed=0)
    assert [p.value for p in found] == pytest.approx(np.percentile(values, PERCENTILES).tolist())
    assert (found[0].low, found[-1].high) == (None, None)
    for interval in found[1:-1]:
        assert interval.low is not None
        assert interval.high is not None
        assert interval.low < interval.value < interval.high


def test_interval_of_a_percentile_is_the_plain_bootstraps() -> None:
    # prompts of different levels, so that resampling them matters
    generator = np.random.default_rng(2)
    levels = np.repeat(generator.random(40), 50)
    values = (levels + 0.2 * generator.random(2000)).astype(np.float32)
    found = percentiles(values, one_prompt_each(2000, 40), seed=0)[PERCENTILES.index(80)]
    rows = values.reshape(40, 50)
    plain = [
        np.percentile(rows[generator.integers(0, 40, 40)].ravel(), 80) for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(plain, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.12 * (high - low))
    assert found.high == pytest.approx(high, abs=0.12 * (high - low))


def test_interval_of_a_percentile_holds_the_truth() -> None:
    held = 0
    for trial in range(30):
        generator = np.random.default_rng(trial)
        # independent tokens: the 80th percentile of the exponential is ln 5
        values = generator.exponential(1.0, 1200).astype(np.float32)
        found = percentiles(values, one_prompt_each(1200, 60), seed=trial)
        interval = found[PERCENTILES.index(80)]
        assert interval.low is not None
        assert interval.high is not None
        held += interval.low <= math.log(5) <= interval.high
    assert held >= 25  # 28.5 +- 3 * 1.2


# ---- resampling ----------------------------------------------------------------------------------


def test_two_prompts_have_three_resamples() -> None:
    ratios = resampled_ratios(
        np.array([[1.0], [6.0]]), np.array([[1.0], [2.0]]), seed=0, purpose="test"
    )
    # aa 1/1, ab 7/3, bb 6/2, one quarter, one half, one quarter of the time
    values, counts = np.unique(ratios, return_counts=True)
    assert values == pytest.approx([1, 7 / 3, 3])
    assert counts / RESAMPLES == pytest.approx([0.25, 0.5, 0.25], abs=0.04)


def test_columns_see_the_same_resamples() -> None:
    sums = np.random.default_rng(0).random((9, 1))
    ratios = resampled_ratios(np.hstack([sums, 2 * sums]), np.ones((9, 2)), seed=0, purpose="test")
    assert ratios[:, 1] == pytest.approx(2 * ratios[:, 0])


def test_resamples_come_from_seed_and_purpose_alone() -> None:
    sums, ones = np.random.default_rng(0).random((9, 1)), np.ones((9, 1))
    first = resampled_ratios(sums, ones, seed=1, purpose="a")
    np.random.seed(5)
    assert np.array_equal(first, resampled_ratios(sums, ones, seed=1, purpose="a"))
    assert not np.array_equal(first, resampled_ratios(sums, ones, seed=2, purpose="a"))
    assert not np.array_equal(first, resampled_ratios(sums, ones, seed=1, purpose="b"))


def test_a_ratio_of_nothing_is_none_and_one_prompt_has_no_interval() -> None:
    found = ratio_intervals(np.array([[2.0, 0.0]]), np.array([[4.0, 0.0]]), seed=0, purpose="t")
    assert found[0] is not None
    assert found[0].model_dump() == {"value": 0.5, "low": None, "high": None, "n": 1}
    assert found[1] is None


def test_resamples_without_the_denominator_are_left_out() -> None:
    # only prompt a has tokens: every resample that has any gives 1/2
    found = ratio_intervals(np.array([[1.0], [0.0]]), np.array([[2.0], [0.0]]), seed=0, purpose="t")
    assert found[0] is not None
    assert (found[0].low, found[0].high) == (0.5, 0.5)
    assert percentile_interval(np.array([np.nan, np.nan]), 2) == (None, None)
