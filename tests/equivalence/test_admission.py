"""Requests that wait take the places of finished rows: the same completions, within the bound."""

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from forkpoint.config import parse_config
from forkpoint.errors import ConfigError
from forkpoint.policy.load import LoadedModel
from forkpoint.sampling import decoding as caches
from forkpoint.sampling.base import SampleRequest
from forkpoint.sampling.build import build_engine
from forkpoint.sampling.decoding import ROOM, cache_bytes, growing_cache, join_caches
from forkpoint.sampling.rows import (
    PLAIN,
    Decoding,
    Rows,
    decoding_fault,
    row_bytes,
    settle_decoding,
)
from forkpoint.sampling.transformers import TransformersEngine
from forkpoint.types import Completion
from tests.conftest import EOS, NumberTokenizer
from tests.equivalence.families import build
from tests.equivalence.test_engine import SETTINGS, passes, policy, requests_of

__all__ = ["passes", "policy"]  # fixtures

ENDS = (EOS, 9, 17, 33)
"""Token ids that end a completion, so that lengths differ."""

TOKEN_BYTES = 2 * 2 * 2 * 8 * 4
"""Of the tiny model: layers x (keys, values) x heads x head width x float32."""


def completions(
    loaded: LoadedModel,
    requests: Sequence[SampleRequest],
    *,
    batch_sequences: int = 512,
    cache_gb: float | None = None,
    decoding: Decoding = PLAIN,
    tokens: int = 30,
) -> list[Completion]:
    engine = TransformersEngine(
        loaded, decoding=decoding, batch_sequences=batch_sequences, cache_gb=cache_gb
    )
    return engine.sample(requests, replace(SETTINGS, max_new_tokens=tokens))


def assert_same(made: Sequence[Completion], expected: Sequence[Completion]) -> None:
    """Token by token; numbers up to rounding, which differs with the number of rows."""
    for ours, theirs in zip(made, expected, strict=True):
        assert ours.token_ids.tolist() == theirs.token_ids.tolist()
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=5e-5)
        assert ours.entropies == pytest.approx(theirs.entropies, abs=5e-5)


def sequence_gb(loaded: LoadedModel, requests: Sequence[SampleRequest], tokens: int = 30) -> float:
    fixed, each = row_bytes(loaded.model, PLAIN)
    return (fixed + each * (max(len(r.prompt.token_ids) for r in requests) + tokens)) / 1e9


# ---- the same completions -----------------------------------------------------------------------


def test_completions_do_not_depend_on_who_is_admitted_when(policy: LoadedModel) -> None:
    requests = requests_of(policy, samples=4)
    alone = completions(policy, requests, batch_sequences=1)
    assert len({len(c.token_ids) for c in alone}) > 1
    one_row = sequence_gb(policy, requests)
    for batch_sequences in (2, 3, 7, len(requests)):
        assert_same(completions(policy, requests, batch_sequences=batch_sequences), alone)
    for rows in (1.01, 3.5, 9.0):
        assert_same(completions(policy, requests, cache_gb=rows * one_row), alone)


@pytest.mark.parametrize("family", ["gpt2", "bloom", "gemma2", "mixtral"])
def test_models_with_positions_windows_and_experts_of_their_own_kind(family: str) -> None:
    model = build(family)
    loaded = LoadedModel(model=model, tokenizer=NumberTokenizer(), eos_ids=ENDS)
    decoding = settle_decoding(model)
    assert decoding.joins
    requests = requests_of(loaded, samples=3)
    alone = completions(loaded, requests, batch_sequences=1, decoding=decoding)
    assert_same(completions(loaded, requests, batch_sequences=4, decoding=decoding), alone)


def test_places_that_become_free_are_taken(
    loaded: LoadedModel, passes: list[tuple[int, int]]
) -> None:
    requests = requests_of(loaded, samples=8)[8:]  # prompts of several tokens
    loaded = replace(loaded, eos_ids=ENDS)
    made = completions(loaded, requests, batch_sequences=4)
    together = [rows for rows, tokens in passes if tokens == 1]
    assert max(together) == 4
    begun = [n for n, (_, tokens) in enumerate(passes) if tokens > 1]
    assert len(begun) > 5
    whole = replace(PLAIN, joins=False)
    passes.clear()
    assert_same(completions(loaded, requests, batch_sequences=4, decoding=whole), made)
    assert len(together) < 0.7 * sum(tokens == 1 for _, tokens in passes)


def test_few_places_are_not_worth_a_copy(
    loaded: LoadedModel, passes: list[tuple[int, int]]
) -> None:
    requests = requests_of(loaded, samples=16)
    completions(replace(loaded, eos_ids=ENDS), requests, batch_sequences=32)
    begun = [n for n, (_, tokens) in enumerate(passes) if tokens > 1]
    rows = [count for count, _ in passes]
    assert len(begun) > 3
    # an eighth of 32 places was free, or all that waited could begin
    assert all(32 - rows[n - 1] >= 4 for n in begun[1:-1])


# ---- the bound ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1.0, 2.0, 5.5])
def test_the_cache_stays_within_its_bound(policy: LoadedModel, rows: float) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    peak = 0

    def watched() -> Any:
        cache = growing_cache()
        alive.add(cache)
        return cache

    def look(module: Any, inputs: Any, output: Any) -> None:
        nonlocal peak
        peak = max(peak, sum(map(cache_bytes, alive)))

    requests = requests_of(policy, samples=4)
    bound = rows * sequence_gb(policy, requests) * (1 + 1e-9)
    handle = policy.model.register_forward_hook(look)
    made = completions(policy, requests, cache_gb=bound, decoding=replace(PLAIN, new_cache=watched))
    handle.remove()
    assert len({len(c.token_ids) for c in made}) > 1
    assert 0.5 * bound < peak / 1e9 <= bound


def test_bytes_by_hand(loaded: LoadedModel) -> None:
    assert row_bytes(loaded.model, PLAIN) == (ROOM * TOKEN_BYTES, TOKEN_BYTES)
    rows = Rows(loaded.model, PLAIN)
    with torch.no_grad():
        rows.read([(2, 3, 4), (5, 6)])
    assert cache_bytes(rows.cache) == 2 * (3 + ROOM) * TOKEN_BYTES
    plain = replace(PLAIN, new_cache=lambda: __import__("transformers").DynamicCache())
    assert row_bytes(loaded.model, plain) == (0, TOKEN_BYTES)


def test_a_bound_below_one_sequence_is_refused(loaded: LoadedModel) -> None:
    config = parse_config({"rollout": {"cache_gb": 1e-5, "max_new_tokens": 30}})
    engine = build_engine(loaded, config)
    # 12 + 30 tokens and room for 64 more: 106 x 256 bytes
    with pytest.raises(ConfigError, match=r"cache_gb = 1e-05 .* 42 tokens.* takes 2.71e-05"):
        engine.sample(requests_of(loaded), replace(SETTINGS, max_new_tokens=30))


def test_a_model_whose_rows_cannot_be_joined_is_sampled_in_bounded_batches() -> None:
    model = build("mamba")
    loaded = LoadedModel(model=model, tokenizer=NumberTokenizer(), eos_ids=ENDS)
    decoding = settle_decoding(model)
    assert not decoding.joins
    fixed, each = row_bytes(model, decoding)
    assert fixed > 0
    assert each == 0  # a state, however long the row
    shapes: list[int] = []
    model.register_forward_pre_hook(
        lambda m, i, k: shapes.append(len(k["input_ids"])), with_kwargs=True
    )
    requests = requests_of(loaded)
    completions(loaded, requests, cache_gb=3.2 * fixed / 1e9, decoding=decoding)
    assert max(shapes) == 3


# ---- joining ------------------------------------------------------------------------------------


def test_joined_rows_end_at_one_edge_behind_zeros() -> None:
    def cache_of(rows: int, columns: int, first: float) -> Any:
        numbers = first + torch.arange(float(rows * columns)).view(rows, 1, columns, 1)
        cache = growing_cache()
        cache.update(numbers, -numbers, 0)
        return cache

    above, below = cache_of(1, 3, 1), cache_of(2, 2, 11)
    join_caches(above, below, torch.tensor([1, 1, 0]), 4)
    keys, values = above.update(torch.full((4, 1, 1, 1), 7.0), torch.full((4, 1, 1, 1), -7.0), 0)
    expected = [[0, 1, 2, 3, 7], [0, 0, 13, 14, 7], [0, 0, 13, 14, 7], [0, 0, 11, 12, 7]]
    assert keys[:, 0, :, 0].tolist() == expected
    assert torch.equal(values, -keys)
    assert below.layers == []
    caches.drop_columns(above, 2)
    assert above.layers[0].keys[:, 0, :, 0].tolist() == [row[2:] for row in expected]
    assert above.get_seq_length() == 3


def test_columns_that_nobody_uses_are_dropped(loaded: LoadedModel) -> None:
    rows = Rows(loaded.model, PLAIN)
    with torch.no_grad():
        rows.read([(2, 3, 4, 5, 6, 7)])
        rows.admit([(2, 3), (4, 5, 6)])
        assert rows.width == 6
        rows.keep(torch.tensor([1, 2]))
        assert rows.width == 3
        assert rows.mask_BL.tolist() == [[0, 1, 1], [1, 1, 1]]
        assert rows.cache.get_seq_length() == 3
        rows.admit([(2, 3, 4, 5)])
    assert rows.mask_BL.tolist() == [[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]


def test_rows_that_come_out_wrong_when_joined_are_found(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacked = caches._stacked

    def shifted(above: torch.Tensor, below: torch.Tensor, width: int) -> torch.Tensor:
        return stacked(above, below.roll(1, dims=1), width)

    monkeypatch.setattr(caches, "_stacked", shifted)
    fault = decoding_fault(loaded.model, PLAIN)
    assert fault is not None
    assert "nats off" in fault
    assert settle_decoding(loaded.model) == replace(PLAIN, joins=False)
