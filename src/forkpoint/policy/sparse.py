"""The same gradient as ``dense``, computed only where it is not zero.

* A sequence without a wanted token is not run.
* A sequence is cut before its last wanted token: under causal attention nothing after a token has
  a part in predicting it.
* The language-model head, forward and backward, runs on the wanted rows alone.

Nothing is approximated: what is left out would have been multiplied by zero.
"""

from typing import Any

from torch import Tensor, nn

from forkpoint.batching.padding import pad_rows
from forkpoint.entropy.head import head_stats
from forkpoint.types import TokenBatch, TokenStats


def sparse_stats(
    model: nn.Module, batch: TokenBatch, wanted_T: Tensor, temperature: float
) -> TokenStats:
    """Statistics of the tokens ``wanted_T`` (bool [T])."""
    padded = pad_rows(batch, wanted_T, drop_and_cut=True)
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    device = head.weight.device
    body: Any = model.base_model  # the transformer without its head, by transformers' own interface
    hidden_BLD = body(input_ids=padded.input_ids_BL.to(device), use_cache=False).last_hidden_state
    hidden_RD = hidden_BLD[padded.line_R.to(device), padded.column_R.to(device)]
    token_ids_R = batch.token_ids_T[padded.rows_R].to(device)
    bias_V = getattr(head, "bias", None)
    logprobs_R, entropies_R = head_stats(hidden_RD, head.weight, bias_V, token_ids_R, temperature)
    return TokenStats(
        rows_R=padded.rows_R,
        logprobs_R=logprobs_R.cpu(),
        entropies_R=entropies_R.cpu(),
        body_tokens=padded.input_ids_BL.numel(),
    )
