"""Where a batch is cut. A cut may change memory and speed; the loss does not depend on it."""

import itertools
from collections.abc import Mapping, Sequence

from forkpoint.types import TokenBatch


def split_minibatches(batch: TokenBatch, count: int) -> list[list[int]]:
    """Up to ``count`` runs of sequences, in order, of sizes that differ by one at most.

    One optimizer update is made per part. A batch with fewer sequences than ``count`` gives fewer
    parts, never an empty one.
    """
    total = batch.num_sequences
    count = min(count, total)
    bounds = [total * part // count for part in range(count + 1)] if count else [0]
    return [list(range(a, b)) for a, b in itertools.pairwise(bounds)]


def split_microbatches(
    batch: TokenBatch, *, max_tokens: int, sequences: int | None = None
) -> list[list[int]]:
    """Parts that each fit in one forward pass over whole sequences.

    Args:
        max_tokens: bound on sequences x longest (prompt + completion); a sequence that alone
            exceeds it gets a part of its own.
        sequences: if given, runs of exactly this many sequences in order instead (the last may be
            shorter): for methods whose definition depends on the micro-batch.
    """
    if sequences is not None:
        return _runs(range(batch.num_sequences), sequences)
    lengths = [len(p) + len(c) for p, c in zip(batch.prompts_B, batch.completions_B, strict=True)]
    return longest_first(dict(enumerate(lengths)), max_tokens)


PADDING = 1 / 16
"""Of a part's ``max_tokens``, the most that may be padding: more parts are cheaper than that."""


def longest_first(lengths: Mapping[int, int], max_tokens: int) -> list[list[int]]:
    """Lines in parts whose padded rectangle holds at most ``max_tokens`` (or one line).

    Longest first: neighbours have similar lengths, so there is little padding, and the pass that
    needs most memory comes first. A line that would bring more padding than ``PADDING`` allows
    begins a new part.
    """
    parts: list[list[int]] = []
    longest = padding = 0
    for index in sorted(lengths, key=lambda b: (-lengths[b], b)):
        padding += longest - lengths[index]
        fits = parts and (len(parts[-1]) + 1) * longest <= max_tokens
        if fits and padding <= PADDING * max_tokens:
            parts[-1].append(index)
        else:
            parts.append([index])
            longest, padding = lengths[index], 0
    return parts


def cut_passes(passes: Sequence[Sequence[int]], max_sequences: int | None) -> list[list[int]]:
    """The passes, each cut at ``max_sequences`` sequences if that is given."""
    if max_sequences is None:
        return [list(one) for one in passes]
    return [part for one in passes for part in _runs(one, max_sequences)]


def _runs(items: Sequence, size: int) -> list[list]:
    return [list(items[a : a + size]) for a in range(0, len(items), size)]
