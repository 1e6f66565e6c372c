"""The same gradient as ``dense``, computed only where it is not zero.

* A sequence without a wanted token is not run.
* A sequence is cut before its last wanted token: under causal attention nothing after a token has
  a part in predicting it.
* The prompt of several completions is run once: they stand behind it in a tree row.
* The language-model head, forward and backward, runs on the wanted rows alone.

Nothing is approximated: what is left out would have been multiplied by zero.
"""

from typing import Any

import torch
from torch import Tensor

from forkpoint.batching.batch import cut_passes, longest_first
from forkpoint.batching.padding import PaddedRows, pad_rows, wanted_rows
from forkpoint.batching.tree import lay_trees, sizes_of
from forkpoint.policy.attention import tree_arguments
from forkpoint.policy.body import body_of
from forkpoint.policy.flops import body_flops, head_flops
from forkpoint.policy.head import head_of
from forkpoint.policy.keys import KeyStore, keep_keys, new_cache
from forkpoint.types import TokenBatch, TokenStats


def tree_passes(
    batch: TokenBatch, wanted_T: Tensor, max_tokens: int, max_sequences: int | None, *, width: int
) -> list[list[int]]:
    """Which sequences share a forward pass: tree rows of similar lengths, up to ``max_tokens``.

    A row wider than ``width`` is a single sequence. Such rows have passes of their own, which need
    no mask: so no dense mask has more than ``width`` columns.
    """
    sizes = sizes_of(batch, wanted_rows(batch, wanted_T))
    rows = sizes.pack(width)
    lengths = dict(enumerate(map(sizes.row_length, rows)))
    wide = {row: length for row, length in lengths.items() if length > width}
    trees = {row: length for row, length in lengths.items() if row not in wide}
    passes: list[list[int]] = []
    for one in (*longest_first(wide, max_tokens), *longest_first(trees, max_tokens)):
        parts = [[b for row in one for b in rows[row]]]
        if len(one) > 1:
            # Packed once more by itself, as ``lay_trees`` will, a pass may come out larger.
            alone = sizes.take(parts[0])
            lengths_alone = [alone.row_length(row) for row in alone.pack(width)]
            if len(lengths_alone) * max(lengths_alone) > max_tokens:
                parts = [rows[row] for row in one]
        passes += parts
    return cut_passes(passes, max_sequences)


def tree_stats(
    model: Any,
    batch: TokenBatch,
    wanted_T: Tensor,
    temperature: float,
    keep: KeyStore | None = None,
    *,
    width: int,
) -> TokenStats:
    """Statistics of the tokens ``wanted_T``, in tree rows.

    Args:
        keep: gets the keys and values of the sequences that were run; without gradient only.
    """
    rows = lay_trees(batch, wanted_T, width).to(model.device)
    cache = None if keep is None else new_cache()
    hidden_BLD = body_of(model)(
        **tree_arguments(model, rows), past_key_values=cache, use_cache=cache is not None
    ).last_hidden_state
    if keep is not None:
        keep_keys(keep, rows, batch, cache)
    return _stats(model, batch, rows, hidden_BLD, temperature)


def padded_passes(
    batch: TokenBatch, wanted_T: Tensor, max_tokens: int, max_sequences: int | None
) -> list[list[int]]:
    """Which sequences share a padded rectangle of ``max_tokens``."""
    ends = wanted_rows(batch, wanted_T).ends_B.tolist()
    lengths = {b: len(batch.prompts_B[b]) + end for b, end in enumerate(ends) if end >= 0}
    return cut_passes(longest_first(lengths, max_tokens), max_sequences)


def padded_stats(model: Any, batch: TokenBatch, wanted_T: Tensor, temperature: float) -> TokenStats:
    """Statistics of the tokens ``wanted_T`` in padded rows, each with its own prompt.

    For models that take no mask.
    """
    rows = pad_rows(batch, wanted_T, drop_and_cut=True).to(model.device)
    hidden_BLD = body_of(model)(input_ids=rows.input_ids_BL, use_cache=False).last_hidden_state
    return _stats(model, batch, rows, hidden_BLD, temperature)


def _stats(
    model: Any,
    batch: TokenBatch,
    rows: PaddedRows,
    hidden_BLD: Tensor,
    temperature: float,
) -> TokenStats:
    hidden_RD = hidden_BLD[rows.line_R, rows.column_R]
    token_ids_R = batch.token_ids_T.to(rows.rows_R.device)[rows.rows_R]
    logprobs_R, entropies_R, energies_R = head_of(model).stats(hidden_RD, token_ids_R, temperature)
    lines, width = rows.input_ids_BL.shape
    learns = torch.is_grad_enabled()
    body = body_flops(model, lines * width, lines * width * width, learns=learns)
    head = head_flops(model, len(token_ids_R))  # backward computes its logits once more
    return TokenStats(
        rows_R=rows.rows_R,
        logprobs_R=logprobs_R,
        entropies_R=entropies_R,
        energies_R=energies_R,
        body_tokens=lines * width,
        flops=body + (4 if learns else 1) * head,
    ).to(batch.token_ids_T.device)
