"""Exact k-th values and counts of any number of entropies, in constant memory.

By the refinement of ``selection.radix``; each count is one pass over the files.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from forkpoint.errors import RunError
from forkpoint.selection.radix import kth_values

Batches: TypeAlias = Callable[[], Iterable[np.ndarray]]
"""Starts a pass over all entropies: arrays of float32 >= 0, nats."""

NEARLY_CERTAIN = 0.01
"""Nats; the paper: half of all tokens have less."""

PERCENTILES = tuple(range(0, 101, 5))

BIN_WIDTH = 0.05
"""Nats, of the histogram."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """How entropy is spread over tokens. Made by ``distribution``."""

    tokens: int
    mean: float
    share_below: float
    """Of the tokens, those with H < ``NEARLY_CERTAIN``."""
    threshold: float
    """The k-th highest entropy, k = ceil(keep_fraction tokens)."""
    kept_fraction: float
    """Of the tokens, those with H >= ``threshold``: more than keep_fraction where values tie."""
    share_of_top: float
    """Of the sum of all entropies, what the k highest hold; 0 if all are 0."""
    percentiles: dict[int, float]
    """p -> the smallest x such that p % of the tokens have H <= x; 0: the minimum."""
    edges: tuple[float, ...]
    """Nats, of the histogram's bins: from an edge (included) to the next."""
    counts: tuple[int, ...]


def distribution(
    read: Batches, keep_fraction: float, *, bin_width: float = BIN_WIDTH
) -> Distribution:
    """Six passes over all entropies.

    Raises:
        RunError: no token at all, or an entropy that is negative or not finite.
    """
    n, below, total, counts = 0, 0, 0.0, np.zeros(0, np.int64)
    for values in read():
        exact = _checked(values).astype(np.float64)
        n, total = n + len(exact), total + float(exact.sum())
        below += int((exact < NEARLY_CERTAIN).sum())
        bins = np.bincount(_bins(exact, bin_width), minlength=len(counts))
        bins[: len(counts)] += counts
        counts = bins
    if n == 0:
        raise RunError("there is no token to analyse")
    k = math.ceil(Fraction(str(keep_fraction)) * n)
    ranks = [n - k + 1, *(max(1, -(-p * n // 100)) for p in PERCENTILES)]
    threshold, *percentiles = kth_values(
        lambda: ((values, np.zeros(len(values), np.int64)) for values in read()),
        np.zeros(len(ranks), np.int64),
        np.array(ranks),
    ).tolist()
    above, equal, sum_above = 0, 0, 0.0
    for values in read():
        higher = values[values > threshold]
        above, equal = above + len(higher), equal + int((values == threshold).sum())
        sum_above += float(higher.sum(dtype=np.float64))
    top = sum_above + (k - above) * threshold
    return Distribution(
        tokens=n,
        mean=total / n,
        share_below=below / n,
        threshold=threshold,
        kept_fraction=(above + equal) / n,
        share_of_top=top / total if total else 0.0,
        percentiles=dict(zip(PERCENTILES, percentiles, strict=True)),
        edges=tuple(i * bin_width for i in range(len(counts) + 1)),
        counts=tuple(counts.tolist()),
    )


def _bins(values: np.ndarray, width: float) -> np.ndarray:
    """The i with edges[i] <= value < edges[i + 1], edges[i] = i * width as it is rounded."""
    guess = np.floor(values / width).astype(np.int64)
    guess -= guess * width > values
    return guess + ((guess + 1) * width <= values)


def _checked(values: np.ndarray) -> np.ndarray:
    """The same.

    Raises:
        RunError: a number that is negative or not finite.
    """
    if not (np.isfinite(values) & (values >= 0)).all():
        raise RunError("the stored completions hold an entropy that is negative or not finite")
    return values
