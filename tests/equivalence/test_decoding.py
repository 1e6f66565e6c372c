"""The cache that grows and the heads that share: the same numbers as transformers' own, copied
less."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache
from transformers.integrations import sdpa_attention

from forkpoint.config.stages import ModelConfig
from forkpoint.errors import NumericalError
from forkpoint.policy.load import LoadedModel, load_model
from forkpoint.sampling import decoding
from forkpoint.sampling.decoding import growing_cache, shared_heads
from forkpoint.sampling.rows import PLAIN
from tests.equivalence.test_engine import requests_of, sample

LAYERS = 2  # of the tiny model


@pytest.fixture(params=["tiny", "lab"])
def policy(request: pytest.FixtureRequest, loaded: LoadedModel) -> LoadedModel:
    return loaded if request.param == "tiny" else load_model(ModelConfig(path="lab:game"))


def test_sampling_is_the_same_to_the_last_bit(
    policy: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "ROOM", 7)  # grows several times
    requests = requests_of(policy)
    ours = sample(policy, requests, max_new_tokens=40)
    theirs = dataclasses.replace(PLAIN, new_cache=DynamicCache, shares_heads=False)
    assert sample(policy, requests, decoding=theirs, max_new_tokens=40) == ours
    assert max(len(c.token_ids) for c in ours) > 3 * 7


# ---- the cache ----------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 100),
    # a number appends so many columns, a list keeps some of the rows
    actions=st.lists(
        st.integers(1, 6) | st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=12
    ),
)
def test_it_holds_what_transformers_holds(seed: int, actions: list[int | list[int]]) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours, theirs, rows = growing_cache(), DynamicCache(), 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "ROOM", 4)
        for action in [2, *actions]:
            if isinstance(action, int):
                new = [torch.randn(rows, 2, action, 5, generator=generator) for _ in range(2)]
                for layer in range(LAYERS):
                    for found, expected in zip(
                        ours.update(*new, layer), theirs.update(*new, layer), strict=True
                    ):
                        assert torch.equal(found, expected)
            else:
                kept = [index % rows for index in action]
                rows = len(kept)
                for cache in (ours, theirs):
                    cache.reorder_cache(torch.tensor(kept))
            assert ours.get_seq_length() == theirs.get_seq_length()
            for mine, other in zip(ours.layers, theirs.layers, strict=True):
                assert torch.equal(mine.keys, other.keys)
                assert torch.equal(mine.values, other.values)


def test_a_token_is_appended_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "ROOM", 3)
    cache, places = growing_cache(), []
    for columns in (4, 1, 1, 1, 1, 1):
        keys, _ = cache.update(torch.ones(2, 1, columns, 8), torch.ones(2, 1, columns, 8), 0)
        places.append(keys.data_ptr())
    # 4 columns and room for 3; then 8 columns and room for 3
    assert len(set(places[:4])) == 1
    assert len(set(places[4:])) == 1
    assert places[3] != places[4]


# ---- attention ----------------------------------------------------------------------------------


def test_keys_are_repeated_for_the_prompts_only(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    whole = sdpa_attention.repeat_kv

    def repeat(states: torch.Tensor, times: int) -> torch.Tensor:
        seen.append(states.shape[2])
        return whole(states, times)

    monkeypatch.setattr(sdpa_attention, "repeat_kv", repeat)
    made = sample(loaded, requests_of(loaded))
    assert max(len(c.token_ids) for c in made) == 12
    assert seen == [12] * 2 * LAYERS  # keys and values of the padded prompts
    seen.clear()
    sample(loaded, requests_of(loaded), decoding=dataclasses.replace(PLAIN, shares_heads=False))
    assert len(seen) == 2 * LAYERS * 12  # and otherwise in each of 12 passes


def names_inside(loaded: LoadedModel) -> set[str]:
    seen = set()
    handle = loaded.model.register_forward_pre_hook(
        lambda module, inputs: seen.add(module.config._attn_implementation)
    )
    sample(loaded, requests_of(loaded))
    handle.remove()
    return seen


def test_the_model_has_its_own_attention_back(loaded: LoadedModel) -> None:
    assert names_inside(loaded) == {decoding.SHARED_HEADS}
    assert loaded.model.config._attn_implementation == "sdpa"

    def spoil(module: Any, inputs: Any, output: Any) -> None:
        output.logits[0, -1, 5] = float("nan")

    loaded.model.register_forward_hook(spoil)
    with pytest.raises(NumericalError):
        sample(loaded, requests_of(loaded))
    assert loaded.model.config._attn_implementation == "sdpa"


def test_other_attention_is_left_alone(loaded: LoadedModel) -> None:
    loaded.model.config._attn_implementation = "eager"
    assert names_inside(loaded) == {"eager"}
    assert loaded.model.config._attn_implementation == "eager"


def test_a_model_that_does_not_ask_by_name_is_left_alone(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(loaded.model), "_supports_attention_backend", False)
    assert names_inside(loaded) == {"sdpa"}


def test_a_mask_and_a_scale_are_obeyed() -> None:
    # 2 query heads share one key head: against softmax(scale q k) v in float64, 1 key hidden
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(1, 2, 1, 4, generator=generator)
    key, value = (torch.randn(1, 1, 3, 4, generator=generator) for _ in range(2))
    mask = torch.tensor([False, True, True]).view(1, 1, 1, 3)
    found, weights = decoding._attend(None, query, key, value, mask, scaling=0.3)
    assert weights is None
    scores = 0.3 * query[0, :, 0].double() @ key[0, 0, 1:].double().T
    expected = scores.softmax(-1) @ value[0, 0, 1:].double()
    torch.testing.assert_close(found[0, 0].double(), expected, rtol=1e-5, atol=1e-6)


def test_nested_use_is_harmless(loaded: LoadedModel) -> None:
    config = loaded.model.config
    with shared_heads(loaded.model), shared_heads(loaded.model):
        assert config._attn_implementation == decoding.SHARED_HEADS
    assert config._attn_implementation == "sdpa"
