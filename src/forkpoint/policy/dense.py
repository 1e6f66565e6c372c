"""The oracle: run every sequence in full, compute every logit, let the loss multiply by zero.

What every peer does, and what the other ways are tested against.
"""

import torch
from torch import Tensor, nn

from forkpoint.batching.padding import pad_rows
from forkpoint.batching.split import split_microbatches
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
    padded = pad_rows(batch, torch.ones_like(batch.pool_T), drop_and_cut=False)
    device = next(model.parameters()).device
    logits_BLV = model(input_ids=padded.input_ids_BL.to(device), use_cache=False).logits
    logits_RV = logits_BLV[padded.line_R.to(device), padded.column_R.to(device)]
    token_ids_R = batch.token_ids_T[padded.rows_R].to(device)
    logprobs_R, entropies_R = logits_stats(logits_RV, token_ids_R, temperature)
    lines, width = padded.input_ids_BL.shape
    return TokenStats(
        rows_R=padded.rows_R,
        logprobs_R=logprobs_R.cpu(),
        entropies_R=entropies_R.cpu(),
        body_tokens=lines * width,
        flops=(3 if torch.is_grad_enabled() else 1) * dense_flops(model, lines, width),
    )


def dense_flops(model: nn.Module, lines: int, width: int) -> float:
    """Of one forward pass over a padded rectangle, every logit computed."""
    tokens = lines * width
    return body_flops(model, tokens, tokens * width) + head_flops(model, tokens)
