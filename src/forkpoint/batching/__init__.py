"""Groups of rollouts in, one aligned TokenBatch out, and the ways to cut and pad it."""

from forkpoint.batching.batch import build_batch, split_microbatches, split_minibatches
from forkpoint.batching.padding import PaddedRows, pad_rows

__all__ = ["PaddedRows", "build_batch", "pad_rows", "split_microbatches", "split_minibatches"]
