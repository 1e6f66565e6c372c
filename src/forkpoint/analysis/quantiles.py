"""Exact k-th values and counts of any number of entropies, in constant memory.

Non-negative float32 numbers are ordered as their bit patterns are. So the k-th smallest is found
eight bits at a time: count how many numbers have each value of the leading bits, see in which of
them the k-th must lie, and count again among those alone. Each count is one pass over the files.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from forkpoint.errors import RunError

Batches: TypeAlias = Callable[[], Iterable[np.ndarray]]
"""Starts a pass over all entropies: arrays of float32 >= 0, nats."""

Grouped: TypeAlias = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
"""The same with each entropy's group, int64 >= 0, or negative: left out."""

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


def kth_values(read: Grouped, groups_K: np.ndarray, ranks_K: np.ndarray) -> np.ndarray:
    """The ranks_K[i]-th smallest entropy of the group groups_K[i], from 1: float64 [K].

    Memory is 256 counts for each of the K.
    """
    prefix_K, left_K = np.zeros(len(ranks_K), np.int64), ranks_K.astype(np.int64)
    if not len(ranks_K):
        return np.zeros(0)
    for shift in (24, 16, 8, 0):
        cells, cell_K = np.unique(groups_K << 32 | prefix_K, return_inverse=True)
        counts = np.zeros(len(cells) * 256, np.int64)
        for values, group in read():
            patterns = _checked(values).view(np.uint32).astype(np.int64)
            keys = group << 32 | patterns >> (shift + 8)
            cell = np.minimum(np.searchsorted(cells, keys), len(cells) - 1)
            inside = cells[cell] == keys
            digits = (patterns[inside] >> shift) & 255
            counts += np.bincount(cell[inside] * 256 + digits, minlength=len(counts))
        upto_KD = counts.reshape(-1, 256).cumsum(1)[cell_K]
        digit_K = (upto_KD < left_K[:, None]).sum(1)
        before_K = np.where(digit_K > 0, upto_KD[np.arange(len(digit_K)), digit_K - 1], 0)
        left_K -= before_K
        prefix_K = prefix_K * 256 + digit_K
    return prefix_K.astype(np.uint32).view(np.float32).astype(np.float64)


def _bins(values: np.ndarray, width: float) -> np.ndarray:
    """The i with edges[i] <= value < edges[i + 1], edges[i] = i * width as it is rounded."""
    guess = np.floor(values / width).astype(np.int64)
    guess -= guess * width > values
    return guess + ((guess + 1) * width <= values)


def _checked(values: np.ndarray) -> np.ndarray:
    """float32, without negative zeros.

    Raises:
        RunError: a number without the order of its bits: negative or not finite.
    """
    values = values.astype(np.float32) + np.float32(0)  # -0 + 0 = 0
    if not (np.isfinite(values) & (values >= 0)).all():
        raise RunError("the stored completions hold an entropy that is negative or not finite")
    return values
