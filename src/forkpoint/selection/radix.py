"""The exact k-th value of float32 numbers that come in chunks, or lie on several processes.

The bits of a float32, with a turn of the sign, are ordered as the numbers are. So the k-th is found
a few bits at a time: count how many numbers have each value of the leading bits, see in which of
them the k-th must lie, and count again among those alone. Every count is one pass over the chunks;
counts of several processes are added up, and no number ever leaves its place.
"""

from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Numbers: TypeAlias = Tensor | np.ndarray

Chunks: TypeAlias = Callable[[], Iterable[Tensor]]
"""Starts a pass over all numbers, float32."""

GroupedChunks: TypeAlias = Callable[[], Iterable[tuple[Numbers, Numbers]]]
"""The same with each number's group, int64; a number of a negative group is left out."""

BITS = 32
_SIGN = 1 << (BITS - 1)


def patterns(values: Tensor) -> Tensor:
    """int64 in [0, 2^32), ordered as the numbers are; -0 and 0 are one number."""
    bits = (values.float() + 0.0).view(torch.int32).long()
    return torch.where(bits < 0, -1 - bits, bits + _SIGN)


def numbers(patterns: Tensor) -> Tensor:
    """The float32 numbers of these patterns."""
    bits = torch.where(patterns < _SIGN, -1 - patterns, patterns - _SIGN)
    return bits.int().view(torch.float32)


def kth_largest(
    read: Chunks, k: int, *, add_up: Callable[[Tensor], Tensor] = lambda counts: counts
) -> float:
    """The k-th largest number, from 1, in two passes.

    Args:
        k: at most how many numbers there are, on all processes together.
        add_up: the sum of int64 counts over all processes.
    """

    def turned() -> Iterable[tuple[Tensor, Tensor]]:
        for values in read():  # the k-th largest is the k-th smallest of the negatives
            yield -values, torch.zeros(len(values), dtype=torch.int64, device=values.device)

    return -float(kth_by_group(turned, torch.tensor([k]), bits=16, add_up=add_up)[0])


def kth_by_group(
    read: GroupedChunks,
    ranks_G: Numbers,
    *,
    bits: int = 8,
    add_up: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> Tensor:
    """The ranks_G[g]-th smallest number of each group g, from 1: float32 [G].

    32 / bits passes; memory is 2^bits counts for each group.
    """
    left_G = as_tensor(ranks_G)
    size, groups = 2**bits, len(left_G)
    prefix_G = torch.zeros_like(left_G)
    for shift in range(BITS - bits, -1, -bits):
        counts_GD = torch.zeros(groups * size, dtype=torch.int64, device=left_G.device)
        for values, groups_N in read():
            group = as_tensor(groups_N)
            kept = group >= 0
            pattern, group = patterns(as_tensor(values))[kept], group[kept]
            inside = pattern >> (shift + bits) == prefix_G[group]
            cells = group[inside] * size + (pattern[inside] >> shift) % size
            counts_GD += cells.bincount(minlength=groups * size)
        upto_GD = add_up(counts_GD).view(groups, size).cumsum(1)
        digit_G = (upto_GD < left_G[:, None]).sum(1)
        before_GD = torch.nn.functional.pad(upto_GD, (1, 0))
        left_G = left_G - before_GD.gather(1, digit_G[:, None])[:, 0]
        prefix_G = prefix_G * size + digit_G
    return numbers(prefix_G)


def as_tensor(values: Numbers) -> Tensor:
    """Arrays that lie in a file's memory are copied: torch takes none that it may not write to."""
    if isinstance(values, Tensor):
        return values
    return torch.from_numpy(values if values.flags.writeable else values.copy())
