"""Advantages of a group by hand, and against their definitions."""

import math
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.advantages import (
    ESTIMATORS,
    STD_EPSILON,
    dr_grpo,
    group_advantages,
    grpo,
    has_zero_variance,
    rloo,
)

REWARDS = st.lists(st.floats(-2, 2, width=16), min_size=2, max_size=16)


def test_one_right_of_four() -> None:
    # mean 1/4, centred 3/4 and three times -1/4; sum of squares 9/16 + 3/16 = 3/4,
    # over G - 1 = 3: variance 1/4, deviation 1/2
    rewards = [0.0, 1.0, 0.0, 0.0]
    assert dr_grpo(rewards) == [-0.25, 0.75, -0.25, -0.25]
    std = 0.5 + STD_EPSILON
    assert grpo(rewards) == pytest.approx([-0.25 / std, 0.75 / std, -0.25 / std, -0.25 / std])
    # minus the mean of the others: 1 - 0, and 0 - 1/3
    assert rloo(rewards) == pytest.approx([-1 / 3, 1.0, -1 / 3, -1 / 3])


def test_deviation_is_the_unbiased_one() -> None:
    # rewards 1 and 0: with G - 1 the deviation is sqrt(1/2), with G it would be 1/2
    assert grpo([1.0, 0.0])[0] == pytest.approx(0.5 / math.sqrt(0.5), rel=1e-5)


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("reward", [0.1, 1.0, -1 / 3, 1e6])
def test_equal_rewards_give_exactly_zero(kind: str, reward: float) -> None:
    # 0.1 + 0.1 + 0.1 over 3 is not 0.1 in binary: a token with 1e-17 is not out of the pool
    for size in range(1, 17):
        assert ESTIMATORS[kind]([reward] * size) == [0.0] * size


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_empty_group_has_no_advantages(kind: str) -> None:
    assert ESTIMATORS[kind]([]) == []
    assert group_advantages([None, None], kind) == [None, None]


@given(REWARDS)
def test_grpo_is_its_definition(rewards: list[float]) -> None:
    mean, std = fmean(rewards), stdev(rewards)
    expected = [(r - mean) / (std + 1e-6) for r in rewards]
    assert grpo(rewards) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(REWARDS)
def test_rloo_is_its_definition(rewards: list[float]) -> None:
    expected = [r - fmean(rewards[:i] + rewards[i + 1 :]) for i, r in enumerate(rewards)]
    assert rloo(rewards) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(REWARDS, st.sampled_from(sorted(ESTIMATORS)))
def test_advantages_add_up_to_zero_and_keep_the_order_of_rewards(
    rewards: list[float], kind: str
) -> None:
    advantages = ESTIMATORS[kind](rewards)
    assert math.fsum(advantages) == pytest.approx(0, abs=1e-9)
    ranked = sorted(range(len(rewards)), key=lambda i: rewards[i])
    assert [advantages[i] for i in ranked] == sorted(advantages)


def test_grpo_does_not_care_about_shift_and_scale_of_rewards_but_dr_grpo_does() -> None:
    # why 1/0 and +1/-1 rewards train the same under GRPO
    plain, signed = [1.0, 0.0, 0.0], [1.0, -1.0, -1.0]
    assert grpo(signed) == pytest.approx(grpo(plain), rel=1e-5)
    assert dr_grpo(signed) == pytest.approx([2 * a for a in dr_grpo(plain)])


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_none_is_left_out_of_the_mean_and_keeps_its_place(kind: str) -> None:
    alone = ESTIMATORS[kind]([1.0, 0.0, 0.5])
    mixed = group_advantages([None, 1.0, 0.0, None, 0.5], kind)
    assert mixed == [None, alone[0], alone[1], None, alone[2]]


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_single_reward_teaches_nothing(kind: str) -> None:
    assert group_advantages([None, 1.0], kind) == [None, 0.0]


def test_zero_variance() -> None:
    assert has_zero_variance([])
    assert has_zero_variance([0.3])
    assert has_zero_variance([0.1, 0.1, 0.1])
    assert not has_zero_variance([0.1, 0.1, 0.1 + 1e-8])


PARTS = st.lists(st.floats(-10, 10), min_size=1, max_size=5)


@given(data=st.data(), parts=PARTS, size=st.integers(1, 12), scale=st.sampled_from([1.0, 1e4]))
def test_the_same_parts_added_in_any_order_are_equal_rewards(
    data: st.DataObject, parts: list[float], size: int, scale: float
) -> None:
    # 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 in binary, and 0.3 - 0.1 - 0.2 is not 0
    orders = [data.draw(st.permutations([scale * p for p in parts])) for _ in range(size)]
    rewards = [sum(order) for order in orders]
    assert has_zero_variance(rewards)
    for estimator in ESTIMATORS.values():
        assert estimator(rewards) == [0.0] * size


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_reward_at_the_mean_has_no_advantage_at_all(kind: str) -> None:
    # 0.2 is the mean of 0.1, 0.2 and 0.3, and in binary 2.8e-17 off it: no token of that sample
    # may compete for selection
    advantages = ESTIMATORS[kind]([0.1, 0.2, 0.3])
    assert advantages[1] == 0.0
    assert advantages[0] < 0 < advantages[2]
    assert not has_zero_variance([0.1, 0.2, 0.3])


@pytest.mark.parametrize(("base", "step"), [(0.0, 1e-8), (1.0, 1e-8), (1e6, 1e-2)])
def test_small_differences_above_rounding_count(base: float, step: float) -> None:
    assert not has_zero_variance([base, base, base + step])
    assert has_zero_variance([base, base, base + step / 100])
