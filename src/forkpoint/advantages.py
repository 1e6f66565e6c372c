"""What each sample of a group was worth, compared with its siblings.

With rewards r_1..r_G of one prompt, over the samples that have a reward:

    grpo      A_i = (r_i - mean r) / (std r + 1e-6)      std with G - 1 (2402.03300; as verl, TRL)
    dr_grpo   A_i =  r_i - mean r                        no division (2503.20783)
    rloo      A_i =  r_i - mean of the others            = G / (G - 1) * (r_i - mean r) (2402.14740)

A reward within ``EQUAL_REWARDS * max(1, largest |r|)`` of the group's mean has an advantage of
exactly 0. Rewards are sums of weighted parts, so the same answer may score 0.6 or
0.6000000000000001, or, where parts cancel, 0 or 5e-17; ``grpo`` would blow such a difference up,
and a token whose advantage is 1e-17 would compete for selection. The bound is absolute for rewards
of order 1, because a sum that cancels has no magnitude left to be relative to, and relative for
larger ones, whose rounding grows with them. It lies a million times above the rounding of float64
and a thousand times below ``STD_EPSILON``, under which GRPO itself takes differences for noise.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

Estimator: TypeAlias = Callable[[Sequence[float]], list[float]]

STD_EPSILON = 1e-6
EQUAL_REWARDS = 1e-9
"""Rewards and verdicts that differ from their mean by less are equal to it; see above."""


def grpo(rewards_G: Sequence[float]) -> list[float]:
    """(r_i - mean) / (std + 1e-6), std with Bessel's correction."""
    centred = dr_grpo(rewards_G)
    if len(centred) < 2:
        return centred
    std = math.sqrt(sum(c * c for c in centred) / (len(centred) - 1))
    return [c / (std + STD_EPSILON) for c in centred]


def dr_grpo(rewards_G: Sequence[float]) -> list[float]:
    """r_i - mean; exactly 0 for a reward that equals the mean up to rounding."""
    if not rewards_G:
        return []
    mean = math.fsum(rewards_G) / len(rewards_G)
    rounding = EQUAL_REWARDS * max(1.0, *map(abs, rewards_G))
    return [r - mean if abs(r - mean) > rounding else 0.0 for r in rewards_G]


def rloo(rewards_G: Sequence[float]) -> list[float]:
    """r_i minus the mean of the other samples' rewards."""
    if len(rewards_G) < 2:
        return [0.0] * len(rewards_G)
    scale = len(rewards_G) / (len(rewards_G) - 1)
    return [scale * c for c in dr_grpo(rewards_G)]


ESTIMATORS: dict[str, Estimator] = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}


def has_zero_variance(rewards_G: Sequence[float]) -> bool:
    """True if no sample is better than another (up to rounding): the group teaches nothing."""
    return not any(dr_grpo(rewards_G))


def group_advantages(rewards_G: Sequence[float | None], kind: str) -> list[float | None]:
    """Advantages of one group, in its order.

    Args:
        rewards_G: one per sample; None leaves the sample out of mean, deviation and training.
        kind: a key of ``ESTIMATORS``.
    """
    advantages = iter(ESTIMATORS[kind]([r for r in rewards_G if r is not None]))
    return [None if r is None else next(advantages) for r in rewards_G]
