"""The oracle: run every sequence in full, compute every logit, let the loss multiply by zero.

What every peer does, and what the other ways are tested against.
"""

import torch
from torch import Tensor, nn

from forkpoint.batching.padding import pad_rows
from forkpoint.entropy.logits import logits_stats
from forkpoint.types import TokenBatch, TokenStats


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
    return TokenStats(
        rows_R=padded.rows_R,
        logprobs_R=logprobs_R.cpu(),
        entropies_R=entropies_R.cpu(),
        body_tokens=padded.input_ids_BL.numel(),
    )
