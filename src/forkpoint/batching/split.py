"""Where a batch is cut. A cut may change memory and speed; the loss does not depend on it."""

import itertools

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
    """Parts that each fit in one forward pass.

    Args:
        max_tokens: bound on sequences x longest (prompt + completion); a sequence that alone
            exceeds it gets a part of its own.
        sequences: if given, runs of exactly this many sequences in order instead (the last may be
            shorter): for methods whose definition depends on the micro-batch.
    """
    total = batch.num_sequences
    if sequences is not None:
        return [list(range(a, min(a + sequences, total))) for a in range(0, total, sequences)]
    lengths = [len(p) + len(c) for p, c in zip(batch.prompts_B, batch.completions_B, strict=True)]
    # Longest first: neighbours have similar lengths, so there is little padding, and the pass
    # that needs most memory comes first.
    parts: list[list[int]] = []
    for index in sorted(range(total), key=lambda b: (-lengths[b], b)):
        if parts and (len(parts[-1]) + 1) * lengths[parts[-1][0]] <= max_tokens:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts
