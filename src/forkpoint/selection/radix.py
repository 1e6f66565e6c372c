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

    found = kth_values(
        # the k-th largest is the k-th smallest of the negatives
        lambda: ((-values, np.zeros(len(values), dtype=np.int64)) for values in read()),
        np.zeros(1, dtype=np.int64),
        np.array([k]),
        bits=16,
        add_up=add_up,
    )
    return -float(found[0])


def kth_values(
    read: GroupedChunks,
    groups_K: np.ndarray,
    ranks_K: np.ndarray,
    *,
    bits: int = 8,
    add_up: AddUp = lambda counts: counts,
) -> np.ndarray:
    """The ranks_K[i]-th smallest number of the group groups_K[i], from 1: float64 [K].

    32 / bits passes; memory is 2^bits counts for each of the K.
    """
    size = 2**bits
    prefix_K, left_K = np.zeros(len(ranks_K), np.int64), ranks_K.astype(np.int64)
    if not len(ranks_K):
        return np.zeros(0)
    for shift in range(BITS - bits, -1, -bits):
        cells, cell_K = np.unique(groups_K << BITS | prefix_K, return_inverse=True)
        counts = np.zeros(len(cells) * size, np.int64)
        for values, group in read():
            pattern = patterns(values)
            keys = group << BITS | pattern >> (shift + bits)
            cell = np.minimum(np.searchsorted(cells, keys), len(cells) - 1)
            inside = cells[cell] == keys
            digits = (pattern[inside] >> shift) % size
            counts += np.bincount(cell[inside] * size + digits, minlength=len(counts))
        upto_KD = add_up(counts).reshape(-1, size).cumsum(1)[cell_K]
        digit_K = (upto_KD < left_K[:, None]).sum(1)
        left_K -= np.where(digit_K > 0, upto_KD[np.arange(len(digit_K)), digit_K - 1], 0)
        prefix_K = prefix_K * size + digit_K
    return numbers(prefix_K)
