"""The tokens a pass is to predict, as the host sees them: layouts are planned from it."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from forkpoint.types import TokenBatch


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
