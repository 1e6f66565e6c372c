"""Sequences as a right-padded rectangle, and where the logits of each token are in it.

Under causal attention nothing to the right of a token is visible to it, so right padding needs no
attention mask and cannot change a real token's value: pad ids are arbitrary. Token ``t`` of a
completion is predicted at column ``len(prompt) + t - 1``.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from forkpoint.types import TokenBatch, sent, spans


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """R wanted rows of a batch. Made by ``wanted_rows``."""

    rows_R: np.ndarray
    """int64 [R], indices into the batch's ``_T`` streams, ascending."""
    sequence_R: np.ndarray
    """int64 [R], whose tokens they are."""
    position_R: np.ndarray
    """int64 [R], where in their completions they stand."""
    ends_B: np.ndarray
    """int64 [B], the position of a sequence's last wanted token; -1: it has none. That token is
    predicted from what stands before it, so this is how many tokens of the completion are run."""


def wanted_rows(batch: TokenBatch, wanted_T: Tensor) -> Wanted:
    """Where a mask bool [T] is true."""
    rows_R = wanted_T.cpu().numpy().nonzero()[0]
    sequence_R = np.repeat(np.arange(batch.num_sequences), batch.lengths_B)[rows_R]
    position_R = rows_R - batch.starts_B[sequence_R]
    ends_B = np.full(batch.num_sequences, -1)
    ends_B[sequence_R] = position_R  # of several the last stays, and they ascend
    return Wanted(rows_R=rows_R, sequence_R=sequence_R, position_R=position_R, ends_B=ends_B)


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

    def to(self, device: Any) -> Self:
        """The same with every tensor on a device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: x for name, x in values.items() if isinstance(x, Tensor)}
        return replace(self, **{name: sent(tensor, device) for name, tensor in tensors.items()})


def pad_rows(batch: TokenBatch, wanted_T: Tensor, *, drop_and_cut: bool) -> PaddedRows:
    """Lay a batch out for a forward pass that predicts the tokens ``wanted_T``.

    Args:
        wanted_T: bool [T].
        drop_and_cut: leave out sequences without a wanted token, and everything from a sequence's
            last wanted token on: that token is predicted from what stands before it, never read.
    """
    wanted = wanted_rows(batch, wanted_T)
    kept_B, ends_B = np.arange(batch.num_sequences), batch.lengths_B
    if drop_and_cut:
        kept_B, ends_B = (wanted.ends_B >= 0).nonzero()[0], wanted.ends_B
    pieces = [
        piece
        for b in kept_B.tolist()
        for piece in (batch.prompts_B[b], batch.completions_B[b][: int(ends_B[b])])
    ]
    prompt_lengths_B = np.array([len(p) for p in batch.prompts_B], dtype=np.int64)
    lengths = prompt_lengths_B[kept_B] + ends_B[kept_B]
    width = int(lengths.max(initial=0))
    input_ids_BL = torch.zeros(len(kept_B), width, dtype=torch.int64)
    if pieces:
        places = spans(np.arange(len(kept_B)) * width, lengths)
        input_ids_BL.view(-1)[torch.from_numpy(places)] = torch.cat(pieces)
    line_of_B = np.zeros(batch.num_sequences, dtype=np.int64)
    line_of_B[kept_B] = np.arange(len(kept_B))
    column_R = prompt_lengths_B[wanted.sequence_R] + wanted.position_R - 1
    return PaddedRows(
        input_ids_BL=input_ids_BL,
        line_R=torch.from_numpy(line_of_B[wanted.sequence_R]),
        column_R=torch.from_numpy(column_R),
        rows_R=torch.from_numpy(wanted.rows_R),
    )
