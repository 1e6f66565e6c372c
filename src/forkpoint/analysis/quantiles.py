"""Exact k-th values and counts of any number of entropies, in constant memory.

By the refinement of ``selection.radix``: one pass counts the leading half of every number's bits,
the other the trailing half of those among which a wanted rank must lie.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np

from forkpoint.errors import RunError
from forkpoint.selection.radix import numbers, patterns

Batches: TypeAlias = Callable[[], Iterable[np.ndarray]]
"""Starts a pass over all entropies: arrays of float32 >= 0, nats."""

HALF = 16
SIZE = 2**HALF

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
    """Two passes over all entropies.

    Raises:
        RunError: no token at all, or an entropy that is negative or not finite.
    """
    first = _first_pass(read(), bin_width)
    n = int(first.counts.sum())
    if n == 0:
        raise RunError("there is no token to analyse")
    k = math.ceil(Fraction(str(keep_fraction)) * n)
    ranks = {p: max(1, -(-p * n // 100)) for p in PERCENTILES}
    chosen = _Chosen(first, [n - k + 1, *ranks.values()], read())
    threshold = chosen.value(n - k + 1)
    above, sum_above = chosen.above(threshold)
    total = float(first.sums.sum())
    top = sum_above + (k - above) * threshold
    return Distribution(
        tokens=n,
        mean=total / n,
        share_below=first.below / n,
        threshold=threshold,
        kept_fraction=(above + chosen.equal(threshold)) / n,
        share_of_top=top / total if total else 0.0,
        percentiles={p: chosen.value(rank) for p, rank in ranks.items()},
        edges=tuple(i * bin_width for i in range(len(first.histogram) + 1)),
        counts=tuple(first.histogram.tolist()),
    )


@dataclass(slots=True)
class _FirstPass:
    """What the leading 16 bits tell."""

    counts: np.ndarray
    """int64 [65536], numbers by their leading half."""
    sums: np.ndarray
    """float64 [65536], their sums."""
    below: int
    histogram: np.ndarray


def _first_pass(batches: Iterable[np.ndarray], bin_width: float) -> _FirstPass:
    seen = _FirstPass(np.zeros(SIZE, np.int64), np.zeros(SIZE), 0, np.zeros(0, np.int64))
    for values in batches:
        leading = _patterns(values) >> HALF
        exact = values.astype(np.float64)
        seen.counts += np.bincount(leading, minlength=SIZE)
        seen.sums += np.bincount(leading, weights=exact, minlength=SIZE)
        seen.below += int((exact < NEARLY_CERTAIN).sum())
        bins = np.bincount(_bins(exact, bin_width), minlength=len(seen.histogram))
        bins[: len(seen.histogram)] += seen.histogram
        seen.histogram = bins
    return seen


def _bins(values: np.ndarray, width: float) -> np.ndarray:
    """The i with edges[i] <= value < edges[i + 1], edges[i] = i * width as it is rounded."""
    guess = np.floor(values / width).astype(np.int64)
    guess -= guess * width > values
    return guess + ((guess + 1) * width <= values)


class _Chosen:
    """The trailing 16 bits of the numbers whose leading half holds a wanted rank."""

    def __init__(
        self, first: _FirstPass, ranks: Sequence[int], batches: Iterable[np.ndarray]
    ) -> None:
        self._first = first
        self._upto = first.counts.cumsum()
        bins = sorted({self._bin(rank) for rank in ranks})
        row_of = np.full(SIZE, -1, dtype=np.int64)
        row_of[bins] = np.arange(len(bins))
        counts = np.zeros(len(bins) * SIZE, dtype=np.int64)
        for values in batches:
            found = _patterns(values)
            rows = row_of[found >> HALF]
            cells = rows[rows >= 0] * SIZE + (found[rows >= 0] & (SIZE - 1))
            np.add.at(counts, cells, 1)
        self._counts = dict(zip(bins, counts.reshape(len(bins), SIZE), strict=True))

    def value(self, rank: int) -> float:
        """The rank-th smallest, from 1."""
        leading = self._bin(rank)
        before = int(self._upto[leading] - self._first.counts[leading])
        trailing = int(np.searchsorted(self._counts[leading].cumsum(), rank - before))
        return float(numbers(np.array([leading * SIZE + trailing]))[0])

    def equal(self, value: float) -> int:
        """How many are equal to a chosen value."""
        leading, trailing = _halves(value)
        return int(self._counts[leading][trailing])

    def above(self, value: float) -> tuple[int, float]:
        """How many are larger than a chosen value, and their sum."""
        leading, trailing = _halves(value)
        rest = np.arange(trailing + 1, SIZE)
        counts = self._counts[leading][rest]
        total = float(self._first.sums[leading + 1 :].sum())
        if counts.any():  # patterns beyond infinity have no number, and no count
            held = counts > 0
            total += float(counts[held] @ numbers(leading * SIZE + rest[held]))
        return int(counts.sum() + self._first.counts[leading + 1 :].sum()), total

    def _bin(self, rank: int) -> int:
        return int(np.searchsorted(self._upto, rank))


def _patterns(values: np.ndarray) -> np.ndarray:
    """The order of float32 numbers as int64.

    Raises:
        RunError: a number that is negative or not finite.
    """
    if not (np.isfinite(values) & (values >= 0)).all():
        raise RunError("the token store holds an entropy that is negative or not finite")
    return patterns(values)


def _halves(value: float) -> tuple[int, int]:
    pattern = int(_patterns(np.array([value], dtype=np.float32))[0])
    return pattern >> HALF, pattern & (SIZE - 1)
