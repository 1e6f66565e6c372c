"""Estimates with intervals: no accuracy is reported without one."""

import math
from collections.abc import Sequence

import numpy as np

from forkpoint.runs.estimates import Estimate

Z_95 = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""

RESAMPLES = 2000

EXACT = 12
"""Decimals of a difference of shares; what follows is the rounding of its subtraction, which makes
equal differences unequal."""


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), 95 %.

    ( p + z^2/2n  +-  z sqrt( p(1-p)/n + z^2/4n^2 ) ) / (1 + z^2/n)
    """
    if n <= 0:
        return 0.0, 1.0
    p, z2 = successes / n, Z_95 * Z_95
    centre = p + z2 / (2 * n)
    half = Z_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    scale = 1 + z2 / n
    low, high = (centre - half) / scale, (centre + half) / scale
    return max(0.0, min(p, low)), min(1.0, max(p, high))  # rounding may put p = 0 or 1 outside


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of n >= 2 values: mean +- t s / sqrt(n), with s the
    standard deviation (divided by n - 1) and t the 97.5 % point of n - 1 degrees of freedom."""
    from scipy.stats import t

    n = len(values)
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(t.ppf(0.975, n - 1)) * spread / math.sqrt(n)
    return mean - half, mean + half


def bootstrap_interval(values: Sequence[float], *, seed: int) -> tuple[float, float]:
    """The bias-corrected and accelerated 95 % bootstrap interval of the mean of shares in [0, 1].

    Values that are all equal tell the bootstrap nothing (its interval would have no width); they
    get Wilson's interval of the same mean instead.
    """
    if len(values) < 2 or min(values) == max(values):
        return wilson_interval(float(np.sum(values)), len(values))
    from scipy.stats import bootstrap

    result = bootstrap(
        (np.asarray(values),),
        np.mean,
        n_resamples=RESAMPLES,
        method="BCa",
        batch=max(1, 2**20 // len(values)),  # memory; the result does not depend on it
        rng=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    return float(interval.low), float(interval.high)


def paired_difference(
    right_P: Sequence[float], reference_P: Sequence[float], *, seed: int
) -> Estimate:
    """Mean over problems of the difference of their shares, with a 95 % interval.

    A bootstrap over problems. Where all P differences are the same number c, it has no width: then
    a share of up to u of all problems may differ from c, in [-1, 1], with u the upper end of
    Wilson's interval of 0 in P.
    """
    differences = [round(a - b, EXACT) for a, b in zip(right_P, reference_P, strict=True)]
    value, n = float(np.mean(differences)), len(differences)
    if min(differences) == max(differences):
        _, u = wilson_interval(0, n)
        return Estimate(value=value, low=value - u * (value + 1), high=value + u * (1 - value), n=n)
    low, high = bootstrap_interval([(d + 1) / 2 for d in differences], seed=seed)
    return Estimate(value=value, low=2 * low - 1, high=2 * high - 1, n=n)
