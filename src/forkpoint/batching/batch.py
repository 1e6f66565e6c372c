"""Rollouts laid end to end, with every per-token stream aligned."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forkpoint.advantages import group_advantages
from forkpoint.types import FinishReason, Group, TokenBatch, sequence_id


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
    captured = all(c.entropies is not None for c in completions)
    return batch.with_streams(
        advantages_T=advantages_T,
        mask_T=mask_T,
        pool_T=(mask_T | truncated_in_pool) & ((advantages_T != 0) | zero_advantage_in_pool),
        rollout_logprobs_T=_flat([c.logprobs for c in completions], torch.float32),
        rollout_entropies_T=(
            _flat([c.entropies for c in completions], torch.float32) if captured else None
        ),
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


def _flat(rows: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """Numpy's arrays end to end."""
    return torch.from_numpy(np.concatenate(rows)).to(dtype) if rows else torch.zeros(0, dtype=dtype)
