"""Rollouts laid end to end, with every per-token stream aligned; and where a batch is cut.

A cut may change memory and speed; the loss does not depend on it.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forkpoint.advantages import group_advantages
from forkpoint.types import FinishReason, Group, TokenBatch, sequence_id

PADDING = 1 / 16
"""Of a part's ``max_tokens``, the most that may be padding: more parts are cheaper than that."""


def build_batch(
    groups: Sequence[Group],
    *,
    advantage: str,
    truncated: str = "keep",
    zero_advantage_in_pool: bool = False,
    truncated_in_pool: bool = False,
) -> TokenBatch:
    """The batch of one training step, in the order (group serial, sample).

    Args:
        groups: samples without a reward are left out.
        advantage: a key of ``advantages.ESTIMATORS``.
        truncated: ``mask`` takes completions that hit the token budget out of mask and pool.
        zero_advantage_in_pool: let tokens whose advantage is 0 compete for selection.
        truncated_in_pool: let tokens that ``truncated`` masks compete; they are not trained on.
    """
    size = max((len(g.rollouts_G) for g in groups), default=1)
    prompts, completions, ids, advantages, counted = [], [], [], [], []
    for group in sorted(groups, key=lambda g: g.serial):
        values = group_advantages([r.score.reward for r in group.rollouts_G], advantage)
        for sample, (rollout, value) in enumerate(zip(group.rollouts_G, values, strict=True)):
            if value is None or not len(rollout.completion):
                continue
            prompts.append(torch.tensor(group.prompt.token_ids, dtype=torch.int64))
            completions.append(rollout.completion)
            ids.append(sequence_id(group.serial, sample, size))
            advantages.append(value)
            cut = rollout.completion.finish_reason is FinishReason.LENGTH
            counted.append(not (cut and truncated == "mask"))

    token_ids_T = _flat([c.token_ids for c in completions], torch.int64)
    split = token_ids_T.split([len(c) for c in completions]) if completions else ()
    batch = lay_out(prompts, split, ids)
    advantages_T = torch.tensor(advantages, dtype=torch.float32)[batch.sequence_T]
    mask_T = torch.tensor(counted, dtype=torch.bool)[batch.sequence_T]
    return batch.with_streams(
        advantages_T=advantages_T,
        mask_T=mask_T,
        pool_T=(mask_T | truncated_in_pool) & ((advantages_T != 0) | zero_advantage_in_pool),
        rollout_logprobs_T=_flat([c.logprobs for c in completions], torch.float32),
        rollout_entropies_T=_if_known([c.entropies for c in completions]),
        rollout_energies_T=_if_known([c.energies for c in completions]),
    )


def lay_out(
    prompts_B: Sequence[Tensor], completions_B: Sequence[Tensor], sequence_ids: Sequence[int]
) -> TokenBatch:
    """Token ids alone as a batch: every token in mask and pool, all other numbers 0."""
    lengths_B = torch.tensor([len(c) for c in completions_B], dtype=torch.int64)
    sequence_T = torch.repeat_interleave(torch.arange(len(lengths_B)), lengths_B)
    starts_B = torch.cumsum(lengths_B, 0) - lengths_B
    zeros_T = torch.zeros(len(sequence_T))
    return TokenBatch(
        prompts_B=prompts_B,
        completions_B=list(completions_B),
        sequence_ids_B=torch.tensor(sequence_ids, dtype=torch.int64),
        token_ids_T=torch.cat([torch.zeros(0, dtype=torch.int64), *completions_B]),
        sequence_T=sequence_T,
        position_T=torch.arange(len(sequence_T)) - starts_B[sequence_T],
        advantages_T=zeros_T,
        mask_T=zeros_T == 0,
        pool_T=zeros_T == 0,
        rollout_logprobs_T=zeros_T,
    )


def _if_known(rows: Sequence[np.ndarray | None]) -> Tensor | None:
    """A stream, if every completion has it."""
    known = [row for row in rows if row is not None]
    return _flat(known, torch.float32) if len(known) == len(rows) else None


def _flat(rows: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """Numpy's arrays end to end."""
    return torch.from_numpy(np.concatenate(rows)).to(dtype) if rows else torch.zeros(0, dtype=dtype)


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
