"""Every random draw, derived from what it is for and never from global state.

A stream is named by (seed, purpose, indices): the same name gives the same numbers in any
process, in any order, on any number of ranks. That is what makes a killed run resume exactly:
there is no generator state to save.
"""

import zlib

import numpy as np


def stream(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """The generator of one purpose.

    Args:
        seed: the run's seed, >= 0.
        purpose: a word such as ``"sample"``; hashed with CRC-32 into the key.
        indices: non-negative integers such as (step, prompt, sample).

    Returns:
        A fresh Philox generator keyed by ``SeedSequence([seed, crc32(purpose), *indices])``.
    """
    key = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *indices])
    return np.random.Generator(np.random.Philox(key))
