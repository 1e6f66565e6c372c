"""Bootstrap over prompts: tokens and samples of one prompt are not independent, prompts are.

A statistic is a ratio of two sums over prompts, such as (entropy change in a bin) / (tokens in the
bin). The sums of each prompt are sufficient: a resample draws P of P prompts with replacement, adds
their sums up and divides, and never looks at a token again.
"""

import numpy as np

from forkpoint.randomness import stream
from forkpoint.runs.results import Estimate

RESAMPLES = 2000
CHUNK_ELEMENTS = 2**20
"""Counts held at once."""


def resampled_ratios(
    numerators_PK: np.ndarray, denominators_PK: np.ndarray, *, seed: int, purpose: str
) -> np.ndarray:
    """K ratios of sums over prompts, in each of R resamples of the prompts: float64 [R, K].

    All K see the same resamples, so that differences between columns are paired. A ratio whose
    denominator is 0 in a resample is nan there.

    Args:
        denominators_PK: [P, 1] for one that all share.
    """
    prompts = len(numerators_PK)
    generator = stream(seed, purpose)
    rows = max(1, CHUNK_ELEMENTS // max(1, prompts))
    parts = []
    for start in range(0, RESAMPLES, rows):
        counts_rP = _draw_counts(generator, min(rows, RESAMPLES - start), prompts)
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append((counts_rP @ numerators_PK) / (counts_rP @ denominators_PK))
    return np.concatenate(parts)


def percentile_interval(samples_R: np.ndarray, prompts: int) -> tuple[float | None, float | None]:
    """The 2.5 % and 97.5 % points of a resampled statistic; one prompt alone says nothing."""
    finite = samples_R[np.isfinite(samples_R)]
    if prompts < 2 or not len(finite):
        return None, None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def ratio_intervals(
    numerators_PK: np.ndarray, denominators_PK: np.ndarray, *, seed: int, purpose: str
) -> list[Estimate | None]:
    """The K ratios of the whole set, each with its interval; None for a ratio of nothing."""
    ratios_RK = resampled_ratios(numerators_PK, denominators_PK, seed=seed, purpose=purpose)
    totals = zip(numerators_PK.sum(0), denominators_PK.sum(0), ratios_RK.T, strict=True)
    return [
        interval_of(float(above / below), samples_R, len(numerators_PK)) if below else None
        for above, below, samples_R in totals
    ]


def interval_of(value: float, samples_R: np.ndarray, prompts: int) -> Estimate:
    """A value with the percentile interval of its resamples."""
    low, high = percentile_interval(samples_R, prompts)
    return Estimate(value=value, low=low, high=high, n=prompts)


def _draw_counts(generator: np.random.Generator, rows: int, prompts: int) -> np.ndarray:
    """How often each prompt is in each resample: float64 [rows, P], every row sums to P."""
    picks = (
        generator.integers(0, max(1, prompts), (rows, prompts)) + prompts * np.arange(rows)[:, None]
    )
    counts = np.bincount(picks.ravel(), minlength=rows * prompts)
    return counts.reshape(rows, prompts).astype(np.float64)
