"""What is tried when a model is loaded: attention, checkpointing, rows, decoding, lengths."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from forkpoint.config import parse_config
from forkpoint.errors import ModelError
from forkpoint.policy import PolicyModule
from forkpoint.policy.body import body_of, check_length, enable_checkpointing, exact_length
from forkpoint.policy.checks import check_rows, plain_stats, settle_attention
from forkpoint.policy.flops import body_shape
from forkpoint.policy.load import LoadedModel
from forkpoint.policy.trial import trial_batch
from forkpoint.sampling import build_engine
from forkpoint.sampling.rows import PLAIN, decoding_fault, settle_decoding
from forkpoint.sampling.transformers import TransformersEngine
from tests.conftest import EOS, NumberTokenizer, make_batch, tiny_model
from tests.equivalence.families import build
from tests.equivalence.model_table import gradient_of, uneven_requests
from tests.equivalence.test_engine import SETTINGS

# ---- attention ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [50.0, 1.0])
def test_a_cap_on_attention_scores_is_not_lost(
    cap: float, caplog: pytest.LogCaptureFixture
) -> None:
    model, ids = build("gemma2", attn_logit_softcapping=cap), torch.arange(3, 43)[None]
    assert model.config._attn_implementation == "sdpa"
    lost = plain_stats(model, ids)[1]
    settle_attention(model)
    assert model.config._attn_implementation == "eager"
    assert f"sdpa cannot cap attention scores (attn_logit_softcapping = {cap})" in caplog.text
    gap = (plain_stats(model, ids)[1] - lost).abs().max()
    assert gap > (0.1 if cap == 1.0 else 1e-6)


def test_attention_that_agrees_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    settle_attention(model)
    assert model.config._attn_implementation == "sdpa"
    assert not caplog.records


def test_any_other_difference_of_sdpa_is_found(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def hot(*inputs: Any, scaling: float, **settings: Any) -> Any:
        return sdpa_attention_forward(*inputs, scaling=2 * scaling, **settings)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", hot)
    model = tiny_model()
    settle_attention(model)
    assert model.config._attn_implementation == "eager"
    assert "Qwen3ForCausalLM: sdpa differs" in caplog.text


# ---- rows ---------------------------------------------------------------------------------------


def neo(window: int) -> Any:
    return build("gpt_neo", window_size=window, max_position_embeddings=2048)


@pytest.mark.parametrize("window", [8, 100, 300])
def test_a_window_that_no_known_field_names_is_found(
    window: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = neo(window)
    policy = PolicyModule(model, gradient="sparse", temperature=1.0)
    assert policy.rows == "padded"
    assert "GPTNeoForCausalLM gets padded rows, not trees: log-probabilities are" in caplog.text
    for refused in ({"gradient": "local"}, {"gradient": "sparse", "rows": "tree"}):
        with pytest.raises(
            ModelError, match=r"tree rows, which GPTNeoForCausalLM .* does not take"
        ):
            PolicyModule(model, temperature=1.0, **refused)


@pytest.mark.parametrize(("gradient", "rows"), [("dense", "tree"), ("local", "padded")])
def test_a_layout_that_a_gradient_does_not_have_is_refused(gradient: str, rows: str) -> None:
    with pytest.raises(ModelError, match=f"'{rows}' is no layout of {gradient} gradients"):
        PolicyModule(tiny_model(), gradient=gradient, temperature=1.0, rows=rows)


def test_a_window_wider_than_any_trial_gets_padded_rows(caplog: pytest.LogCaptureFixture) -> None:
    policy = PolicyModule(neo(10_000), gradient="sparse", temperature=1.0)
    assert policy.rows == "padded"
    assert "a window in its config is wider than 8192 tokens" in caplog.text


def test_the_trial_fills_a_row_with_a_wide_tree_and_two_small_ones() -> None:
    from forkpoint.batching.tree import lay_trees

    batch, wanted_T = trial_batch(tiny_model(), 160)
    rows = lay_trees(batch, wanted_T, 160)
    assert rows.tree_BL.shape == (1, 160 - 7)  # the last token of each completion is not run
    assert rows.tree_BL[0].bincount().tolist() == [120 - 3, 20 - 2, 20 - 2]


def test_a_model_that_is_not_causal_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="BertLMHeadModel gives a sequence other numbers beside a"):
        check_rows(build("bert"))
    check_rows(build("bert", is_decoder=True))


# ---- checkpointing ------------------------------------------------------------------------------

NOISY = {
    "phimoe": {"router_jitter_noise": 0.5, "input_jitter_noise": 0.5},
    "mixtral": {"router_jitter_noise": 0.5},
    "falcon": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "opt": {"layerdrop": 0.9, "dropout": 0.5},
    "biogpt": {"layerdrop": 0.9, "hidden_dropout_prob": 0.5},
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "dbrx": {},
}


@pytest.mark.parametrize("family", NOISY)
def test_checkpointing_draws_nothing(family: str) -> None:
    model = build(family, **NOISY[family])
    policy = PolicyModule(model, gradient="dense", temperature=1.0)
    plain = gradient_of(model, policy)
    enable_checkpointing(model)
    again = gradient_of(model, policy)
    assert plain.norm() > 0
    assert (again - plain).norm() / plain.norm() < 1e-6
    assert not any(module.training for module in model.modules())


def test_a_model_without_such_layers_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="CTRLLMHeadModel has no layers that can be run again"):
        enable_checkpointing(build("ctrl"))


# ---- decoding -----------------------------------------------------------------------------------


def loaded(model: Any) -> LoadedModel:
    return LoadedModel(model=model, tokenizer=NumberTokenizer(), eos_ids=(EOS, 9, 17, 33))


def test_a_state_that_is_lost_between_tokens_is_found() -> None:
    # transformers' cache under the name of another argument, as if the model had taken it
    model = build("mamba")
    own = settle_decoding(model)
    assert not own.pads
    padded = dataclasses.replace(own, pads=True)
    fault = decoding_fault(model, padded)
    assert fault is not None
    assert "nats off" in fault
    lost = dataclasses.replace(own, new_cache=lambda: None)
    assert decoding_fault(model, lost) is not None


@pytest.mark.parametrize("family", ["rwkv", "minimax", "deepseek_v4"])
def test_a_model_that_cannot_be_sampled_is_refused_at_load(family: str) -> None:
    config = parse_config({"rollout": {"max_new_tokens": 8}})
    with pytest.raises(ModelError, match="cannot be sampled a token at a time by this engine"):
        build_engine(loaded(build(family)), config)


def test_prompts_that_cannot_be_padded_are_sampled_by_length_in_the_order_asked() -> None:
    model = build("mamba")
    requests = uneven_requests()
    shapes: list[torch.Size] = []
    engine = TransformersEngine(loaded(model), decoding=settle_decoding(model), batch_sequences=2)
    model.register_forward_pre_hook(
        lambda m, i, k: shapes.append(k["input_ids"].shape), with_kwargs=True
    )
    order = [0, 3, 6, 1, 4, 7, 2, 5, 8]
    mixed = engine.sample([requests[i] for i in order], SETTINGS)
    assert {shape[1] for shape in shapes} == {1, 4, 13, 26}
    assert max(shape[0] for shape in shapes) == 2
    alone = [engine.sample([requests[i]], SETTINGS)[0] for i in order]
    assert [c.token_ids.tolist() for c in mixed] == [c.token_ids.tolist() for c in alone]


def test_attention_by_name_is_left_to_models_that_do_not_look_at_it() -> None:
    decoding = settle_decoding(build("deepseek_v32"))
    assert not decoding.shares_heads
    assert settle_decoding(tiny_model()) is PLAIN


# ---- lengths ------------------------------------------------------------------------------------

LONGROPE = {
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 2.0, 4.0, 8.0],
    },
}
DYNAMIC = {
    "max_position_embeddings": 32,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
}
BOUNDED = {"phi3": LONGROPE, "llama": DYNAMIC, "doge": {"keep_window_size": 32}}
"""Families whose numbers depend on the longest sequence of the batch, beyond 32 tokens."""


@pytest.mark.parametrize("family", BOUNDED)
def test_a_length_beyond_which_neighbours_matter_is_known_and_real(family: str) -> None:
    model = build(family, **BOUNDED[family])
    limit = exact_length(model)
    assert limit is not None
    assert limit[0] == 32
    ids = torch.randint(3, 61, (2, 64), generator=torch.Generator().manual_seed(1))
    alone = plain_stats(model, ids[:1, :20])[1]
    within = plain_stats(model, ids[:, :32])[1][:1, :19]
    beyond = plain_stats(model, ids)[1][:1, :19]
    assert (within - alone).abs().max() < 1e-5
    assert family == "doge" or (beyond - alone).abs().max() > 1e-3
    check_length(model, 32)
    with pytest.raises(ModelError, match=r"beyond 32 tokens .* a sequence's numbers depend"):
        check_length(model, 33)


def test_it_is_refused_at_load_while_sampling_and_in_training() -> None:
    model = build("phi3", **LONGROPE)
    with pytest.raises(ModelError, match="beyond 32 tokens"):
        build_engine(loaded(model), parse_config({"rollout": {"max_new_tokens": 32}}))
    engine = build_engine(loaded(model), parse_config({"rollout": {"max_new_tokens": 8}}))
    requests = uneven_requests()
    assert engine.sample(requests[:3], SETTINGS)  # 4 + 12 tokens
    with pytest.raises(ModelError, match=r"beyond 32 tokens .* up to 38"):
        engine.sample(requests, SETTINGS)
    policy = PolicyModule(model, gradient="sparse", temperature=1.0)
    batch = make_batch()
    assert policy.annotate(batch, max_tokens=100)
    longer = [torch.cat([c] * 4) for c in batch.completions_B]
    with pytest.raises(ModelError, match="beyond 32 tokens"):
        policy.passes(
            dataclasses.replace(batch, completions_B=longer), batch.pool_T, max_tokens=100
        )


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "mistral"])
def test_most_models_have_no_such_length(family: str) -> None:
    assert exact_length(build(family)) is None


# ---- wrappers -----------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """Attributes and nesting of a ``PeftModel``: ``base_model`` is a tuner, not the transformer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model

    def get_base_model(self) -> Any:
        return self.base_model.model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model").model, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model.model(*args, **kwargs)


@pytest.mark.parametrize("gradient", ["sparse", "local"])
def test_a_wrapper_of_adapters_is_looked_through(gradient: str) -> None:
    model = tiny_model()
    wrapped: Any = Wrapped(model)
    assert body_of(wrapped) is body_of(model) is model.model
    policy = PolicyModule(wrapped, gradient=gradient, temperature=1.0)
    assert policy.rows == "tree"
    assert policy.row_tokens == PolicyModule(model, gradient=gradient, temperature=1.0).row_tokens
    assert settle_decoding(wrapped) is PLAIN
    dense = PolicyModule(model, gradient="dense", temperature=1.0)
    batch = make_batch()
    found = policy(batch, batch.pool_T)
    expected = dense(batch, batch.pool_T)
    torch.testing.assert_close(found.logprobs_R, expected.logprobs_R[found.rows_R])
    enable_checkpointing(wrapped)


def test_an_adapter_on_the_head_is_refused() -> None:
    model = tiny_model()
    model.lm_head.base_layer = nn.Identity()
    with pytest.raises(ModelError, match=r"with an adapter \(LoRA\) on it: use --set"):
        PolicyModule(model, gradient="sparse", temperature=1.0)


# ---- weights that a token meets -----------------------------------------------------------------


def test_convolutions_by_name_are_matrices_in_gpt2() -> None:
    # a layer: 32 x 96 query, key and value, 32 x 32 out, 32 x 128 and back
    assert body_shape(body_of(build("gpt2", n_inner=None))) == (
        2 * (32 * 96 + 32 * 32 + 2 * 32 * 128),
        2 * 32,
    )


def test_latent_attention_has_wider_keys_than_values() -> None:
    # 4 heads, keys of 8 without a position and 8 with one, values of 8; 4 P A is 2 P (16 + 8)
    model = build("deepseek_v3")
    layers = model.config.num_hidden_layers
    assert body_shape(body_of(model))[1] == layers * 4 * (16 + 8) // 2


@pytest.mark.parametrize(
    ("family", "experts"),
    [("mixtral", 2 * 3 * 32 * 48), ("dbrx", 2 * 3 * 32 * 48), ("gpt_oss", 2 * 3 * 32 * 48)],
)
def test_of_experts_those_are_counted_that_a_token_is_sent_to(family: str, experts: int) -> None:
    # a layer: 4 experts, 2 of them active, each 3 matrices of 32 x 48; a router of 32 x 4;
    # query and out 32 x 32, key and value 32 x 16
    attention = 2 * 32 * 32 + 2 * 32 * 16
    matrices, _ = body_shape(body_of(build(family)))
    assert matrices == 2 * (attention + experts + 32 * 4)
