"""Draws are named by what they are for: same name, same numbers, in any process and any order."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.randomness import stream

INDICES = st.integers(0, 2**31)


def crc32(text: str) -> int:
    """CRC-32 bit by bit, as ISO 3309 defines it (reversed polynomial 0xEDB88320)."""
    crc = 0xFFFFFFFF
    for byte in text.encode():
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def first(seed: int, purpose: str, *indices: int) -> list[float]:
    return stream(seed, purpose, *indices).random(4).tolist()


def test_key_is_seed_hash_of_the_purpose_and_indices() -> None:
    assert crc32("123456789") == 0xCBF43926  # the check value of the standard
    key = np.random.SeedSequence([7, crc32("sample"), 3, 1, 4])
    expected = np.random.Generator(np.random.Philox(key)).random(4)
    assert first(7, "sample", 3, 1, 4) == expected.tolist()


def test_a_stream_starts_afresh_each_time() -> None:
    one = stream(0, "sample", 1)
    begun = one.random(4).tolist()
    assert begun == first(0, "sample", 1)
    assert one.random(4).tolist() != begun


@given(st.tuples(INDICES, INDICES), st.tuples(INDICES, INDICES))
def test_different_names_give_different_numbers(a: tuple[int, int], b: tuple[int, int]) -> None:
    assert (first(0, "sample", *a) == first(0, "sample", *b)) == (a == b)
    assert first(0, "sample", *a) != first(1, "sample", *a)
    assert first(0, "sample", *a) != first(0, "random rule", *a)


def test_order_of_indices_matters() -> None:
    assert first(0, "sample", 1, 2) != first(0, "sample", 2, 1)


def test_draws_of_neighbours_are_not_related() -> None:
    # 1000 streams of consecutive indices: uniform, and uncorrelated with the next one
    draws = np.array([stream(0, "sample", step).random() for step in range(1000)])
    assert abs(draws.mean() - 0.5) < 4 * (1 / 12) ** 0.5 / 1000**0.5
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / 1000**0.5


def test_global_generators_are_neither_read_nor_moved() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    drawn = first(5, "sample", 0)
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert after == before
    np.random.seed(2)
    assert first(5, "sample", 0) == drawn


def test_another_process_draws_the_same() -> None:
    # a purpose hashed with python's own hash() would differ from process to process
    code = (
        "from forkpoint.randomness import stream; print(stream(5, 'sample', 0).random(4).tolist())"
    )
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(first(5, "sample", 0))


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        stream(-1, "sample")
    with pytest.raises(ValueError, match="non-negative"):
        stream(0, "sample", -1)
