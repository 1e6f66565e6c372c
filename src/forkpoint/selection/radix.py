"""The exact k-th value of float32 numbers that come in chunks, or lie on several processes.

The bits of a float32, with a turn of the sign, are ordered as the numbers are. So the k-th is found
a few bits at a time: count how many numbers have each value of the leading bits, see in which of
them the k-th must lie, and count again among those alone. Every count is one pass over the chunks;
counts of several processes are added up, and no number ever leaves its place.
"""

from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np

Chunks: TypeAlias = Callable[[], Iterable[np.ndarray]]
"""Starts a pass over all numbers, float32."""

GroupedChunks: TypeAlias = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
"""The same with each number's group, int64; a number of a negative group is left out."""

AddUp: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""The sum of int64 counts over all processes."""

BITS = 32
_SIGN = 1 << (BITS - 1)


def patterns(values: np.ndarray) -> np.ndarray:
    """int64 in [0, 2^32), ordered as the numbers are; -0 and 0 are one number."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -1 - bits, bits + _SIGN)


def numbers(patterns: np.ndarray) -> np.ndarray:
    """The numbers of these patterns: float64, without rounding."""
    bits = np.where(patterns < _SIGN, -1 - patterns, patterns - _SIGN)
    return bits.astype(np.int32).view(np.float32).astype(np.float64)


def kth_largest(read: Chunks, k: int, *, add_up: AddUp = lambda counts: counts) -> float:
    """The k-th largest number, from 1, in two passes.

    Args:
        k: at most how many numbers there are, on all processes together.
    """

    def turned() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for values in read():  # the k-th largest is the k-th smallest of the negatives
            yield -values, np.zeros(len(values), dtype=np.int64)

    return -float(kth_by_group(turned, np.array([k]), bits=16, add_up=add_up)[0])


def kth_by_group(
    read: GroupedChunks,
    ranks_G: np.ndarray,
    *,
    bits: int = 8,
    add_up: AddUp = lambda counts: counts,
) -> np.ndarray:
    """The ranks_G[g]-th smallest number of each group g, from 1: float64 [G].

    32 / bits passes; memory is 2^bits counts for each group.
    """
    size, groups = 2**bits, len(ranks_G)
    prefix_G = np.zeros(groups, dtype=np.int64)
    left_G = ranks_G.astype(np.int64)
    for shift in range(BITS - bits, -1, -bits):
        counts_GD = np.zeros(groups * size, dtype=np.int64)
        for values, group in read():
            pattern, group = patterns(values)[group >= 0], group[group >= 0]
            inside = pattern >> (shift + bits) == prefix_G[group]
            cells = group[inside] * size + (pattern[inside] >> shift) % size
            counts_GD += np.bincount(cells, minlength=groups * size)
        upto_GD = add_up(counts_GD).reshape(groups, size).cumsum(1)
        digit_G = (upto_GD < left_G[:, None]).sum(1)
        left_G -= np.where(digit_G > 0, upto_GD[np.arange(groups), digit_G - 1], 0)
        prefix_G = prefix_G * size + digit_G
    return numbers(prefix_G)
