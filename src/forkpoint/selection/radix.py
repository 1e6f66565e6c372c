"""The exact k-th value of float32 numbers that come in chunks.

The bits of a float32, with a turn of the sign, are ordered as the numbers are. So the k-th is found
a few bits at a time: count how many numbers have each value of the leading bits, see in which of
them the k-th must lie, and count again among those alone. Every count is one pass over the chunks.
"""

from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np

GroupedChunks: TypeAlias = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
"""Starts a pass over all numbers, float32, each with its group, int64; a number of a negative
group is left out."""

BITS, DIGIT = 32, 8
"""Of a number, and those that a pass settles."""
_SIGN = 1 << (BITS - 1)


def patterns(values: np.ndarray) -> np.ndarray:
    """int64 in [0, 2^32), ordered as the numbers are; -0 and 0 are one number."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -1 - bits, bits + _SIGN)


def numbers(patterns: np.ndarray) -> np.ndarray:
    """The numbers of these patterns: float64, without rounding."""
    bits = np.where(patterns < _SIGN, -1 - patterns, patterns - _SIGN)
    return bits.astype(np.int32).view(np.float32).astype(np.float64)


def kth_values(read: GroupedChunks, groups_K: np.ndarray, ranks_K: np.ndarray) -> np.ndarray:
    """The ranks_K[i]-th smallest number of the group groups_K[i], from 1: float64 [K].

    Four passes; memory is 256 counts for each of the K.
    """
    size = 2**DIGIT
    prefix_K, left_K = np.zeros(len(ranks_K), np.int64), ranks_K.astype(np.int64)
    if not len(ranks_K):
        return np.zeros(0)
    for shift in range(BITS - DIGIT, -1, -DIGIT):
        cells, cell_K = np.unique(groups_K << BITS | prefix_K, return_inverse=True)
        counts = np.zeros(len(cells) * size, np.int64)
        for values, group in read():
            pattern = patterns(values)
            keys = group << BITS | pattern >> (shift + DIGIT)
            cell = np.minimum(np.searchsorted(cells, keys), len(cells) - 1)
            inside = cells[cell] == keys
            digits = (pattern[inside] >> shift) % size
            counts += np.bincount(cell[inside] * size + digits, minlength=len(counts))
        upto_KD = counts.reshape(-1, size).cumsum(1)[cell_K]
        digit_K = (upto_KD < left_K[:, None]).sum(1)
        left_K -= np.where(digit_K > 0, upto_KD[np.arange(len(digit_K)), digit_K - 1], 0)
        prefix_K = prefix_K * size + digit_K
    return numbers(prefix_K)
