"""Sequences as a right-padded rectangle, and where the logits of each token are in it.

Under causal attention nothing to the right of a token is visible to it, so right padding needs no
attention mask and cannot change a real token's value: pad ids are arbitrary. Token ``t`` of a
completion is predicted at column ``len(prompt) + t - 1``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from forkpoint.types import TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedRows:
    """The rectangle a model runs on and its map back to the batch's rows."""

    input_ids_BL: Tensor
    """int64 [lines, L], 0 where there is nothing."""
    line_R: Tensor
    """int64 [R], the line of the rectangle where each wanted row is predicted."""
    column_R: Tensor
    """int64 [R], the column of the same."""
    rows_R: Tensor
    """int64 [R], the wanted rows: indices into the batch's ``_T`` streams, ascending."""


def pad_rows(batch: TokenBatch, wanted_T: Tensor, *, drop_and_cut: bool) -> PaddedRows:
    """Lay a batch out for a forward pass that predicts the tokens ``wanted_T``.

    Args:
        wanted_T: bool [T].
        drop_and_cut: leave out sequences without a wanted token, and everything from a sequence's
            last wanted token on: that token is predicted from what stands before it, never read.
    """
    rows_R = wanted_T.nonzero().flatten()
    kept_B = torch.arange(batch.num_sequences)
    ends_B = torch.tensor([len(c) for c in batch.completions_B], dtype=torch.int64)
    if drop_and_cut:
        kept_B = batch.sequence_T[rows_R].unique()
        ends_B = torch.zeros_like(ends_B).scatter_reduce(
            0, batch.sequence_T[rows_R], batch.position_T[rows_R], reduce="amax"
        )
    pieces = [
        torch.cat([batch.prompts_B[b], batch.completions_B[b][: int(ends_B[b])]])
        for b in kept_B.tolist()
    ]
    width = max((len(p) for p in pieces), default=0)
    input_ids_BL = torch.zeros(len(pieces), width, dtype=torch.int64)
    for line, piece in enumerate(pieces):
        input_ids_BL[line, : len(piece)] = piece
    line_of_B = torch.zeros(batch.num_sequences, dtype=torch.int64)
    line_of_B[kept_B] = torch.arange(len(kept_B))
    prompt_lengths_B = torch.tensor([len(p) for p in batch.prompts_B], dtype=torch.int64)
    sequence_R = batch.sequence_T[rows_R]
    return PaddedRows(
        input_ids_BL=input_ids_BL,
        line_R=line_of_B[sequence_R],
        column_R=prompt_lengths_B[sequence_R] + batch.position_T[rows_R] - 1,
        rows_R=rows_R,
    )
