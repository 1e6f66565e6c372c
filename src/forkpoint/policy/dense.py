"""The oracle: run every sequence in full, compute every logit, let the loss multiply by zero.

What every peer does, and what the other ways are tested against.
"""

import torch
from torch import Tensor, nn

from forkpoint.batching.batch import split_microbatches
from forkpoint.batching.padding import pad_rows
from forkpoint.entropy.logits import logits_stats
from forkpoint.policy.flops import body_flops, head_flops
from forkpoint.types import TokenBatch, TokenStats


def dense_passes(
    batch: TokenBatch, wanted_T: Tensor, max_tokens: int, max_sequences: int | None
) -> list[list[int]]:
    """Every sequence, in padded rectangles of ``max_tokens``."""
    return split_microbatches(batch, max_tokens=max_tokens, sequences=max_sequences)


def dense_stats(
    model: nn.Module, batch: TokenBatch, wanted_T: Tensor, temperature: float
) -> TokenStats:
    """Statistics of every token of the batch, whatever ``wanted_T`` says."""
    everything_T = torch.ones(batch.num_tokens, dtype=torch.bool)
    padded = pad_rows(batch, everything_T, drop_and_cut=False)
    padded = padded.to(next(model.parameters()).device)
    logits_BLV = model(input_ids=padded.input_ids_BL, use_cache=False).logits
    logits_RV = logits_BLV[padded.line_R, padded.column_R]
    token_ids_R = batch.token_ids_T.to(logits_RV.device)
    logprobs_R, entropies_R, energies_R = logits_stats(logits_RV, token_ids_R, temperature)
    lines, width = padded.input_ids_BL.shape
    return TokenStats(
        rows_R=padded.rows_R,
        logprobs_R=logprobs_R,
        entropies_R=entropies_R,
        energies_R=energies_R,
        body_tokens=lines * width,
        flops=dense_flops(model, lines, width, learns=torch.is_grad_enabled()),
    ).to(batch.token_ids_T.device)


def dense_flops(model: nn.Module, lines: int, width: int, *, learns: bool) -> float:
    """Operations of a pass over a padded rectangle, every logit computed.

    Args:
        learns: with its backward pass.
    """
    tokens = lines * width
    head = (3 if learns else 1) * head_flops(model, tokens)
    return body_flops(model, tokens, tokens * width, learns=learns) + head
