"""Heads that scale or cap their logits, heads that are refused, and the work that is counted."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from forkpoint.errors import ModelError
from forkpoint.policy import PolicyModule
from forkpoint.policy.body import enable_checkpointing
from forkpoint.policy.flops import Work, body_flops, head_flops
from forkpoint.policy.head import head_of
from forkpoint.policy.live import LiveSet
from tests.conftest import make_batch, tiny_model

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def scaled_model(kind: str) -> Any:
    import transformers

    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "Gemma2": {"final_logit_softcapping": 2.0, "head_dim": 8},
        "Cohere": {"logit_scale": 0.25},
        "Granite": {"logits_scaling": 4.0},
    }
    config = getattr(transformers, f"{kind}Config")(**SHAPE, **settings[kind])
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.mark.parametrize("kind", ["Gemma2", "Cohere", "Granite"])
def test_scaled_and_capped_heads_give_the_dense_statistics_and_gradient(kind: str) -> None:
    model = scaled_model(kind)
    batch = make_batch()
    wanted = batch.pool_T & (batch.position_T % 2 == 0)
    found = []
    for gradient in ("dense", "sparse"):
        model.zero_grad()
        stats = PolicyModule(model, gradient=gradient, temperature=0.8)(batch, wanted)
        keep = wanted[stats.rows_R]
        value = stats.logprobs_R[keep].sum() + stats.entropies_R[keep].sum()
        value.backward()
        flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((value.item(), flat))
    (value, exact), (other, got) = found
    assert other == pytest.approx(value, rel=1e-5)
    assert (got - exact).norm() / exact.norm() < 1e-5


def test_a_head_whose_logits_are_changed_otherwise_is_refused_by_name() -> None:
    model = tiny_model()
    head = model.get_output_embeddings()

    class Shifted(nn.Module):
        weight = head.weight

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return head(hidden) ** 3

    model.lm_head = Shifted()
    with pytest.raises(ModelError, match="Qwen3ForCausalLM does something after its transformer"):
        PolicyModule(model, gradient="sparse", temperature=1.0)


def test_a_plain_head_is_plain() -> None:
    head = head_of(tiny_model())
    assert (head.shape.scale, head.shape.softcap, head.bias_V) == (1.0, None, None)


def test_floating_point_operations_by_hand() -> None:
    model = tiny_model()
    # a layer: q 32 x 32, k and v 32 x 16 each, o 32 x 32, three matrices 32 x 48
    matrices = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48)
    # attention: 2 layers, 4 heads of 8; scores and weighted values, 2 operations each
    assert body_flops(model, 10, 0) == 2 * 10 * matrices
    assert body_flops(model, 0, 7) == 4 * 7 * 2 * 32
    assert head_flops(model, 3) == 2 * 3 * 61 * 32


def test_work_is_that_of_the_rectangles_that_were_run() -> None:
    model = tiny_model()
    batch = make_batch().take([0, 1])  # prompts of 3 tokens, completions of 3 and 9
    wanted = (batch.sequence_T == 1) & (batch.position_T == 4)
    sparse = PolicyModule(model, gradient="sparse", temperature=1.0)(batch, wanted)
    # one row of 3 + 4 tokens, one row of the head whose logits are computed again in backward
    assert sparse.body_tokens == 7
    assert sparse.flops == 3 * body_flops(model, 7, 49) + 4 * head_flops(model, 1)
    dense = PolicyModule(model, gradient="dense", temperature=1.0)(batch, wanted)
    # two rows of 12, every logit
    assert dense.flops == 3 * (body_flops(model, 24, 24 * 12) + head_flops(model, 24))
    forks = LiveSet(kind="forks", first_hop=False)
    local = PolicyModule(model, gradient="local", temperature=1.0, live=forks)(batch, wanted)
    # the same row without gradient, then one query over 6 constant keys and its own
    assert (local.cached_tokens, local.body_tokens) == (7, 1)
    cost = body_flops(model, 7, 49) + 3 * body_flops(model, 1, 7) + 4 * head_flops(model, 1)
    assert local.flops == cost
    local = PolicyModule(model, gradient="local", temperature=1.0)(batch, wanted)
    # ceil(0.35 x 7) are live; what one looks at: products with 7 keys, 2 layers of 4 heads of 8;
    # four constant ones of width 32: keys and values of 2 heads in 2 layers, a product forward and
    # two back, and the queries of 4 heads
    assert (local.cached_tokens, local.body_tokens) == (7, 3)
    assert (local.live_positions, local.row_positions) == (3, 7)
    cost = body_flops(model, 7, 49) + 3 * body_flops(model, 3, 3 * 7) + 4 * head_flops(model, 1)
    cost += 2 * 7 * 2 * 4 * 8 + 2 * 4 * 32 * 2 * (3 * 2 * 2 * 8 + 4 * 8)
    assert local.flops == cost


def test_checkpointed_layers_are_counted_once_more() -> None:
    batch, (plain, again) = make_batch(), (tiny_model(), tiny_model())
    enable_checkpointing(again)
    every_T = torch.ones_like(batch.pool_T)
    for gradient in ("dense", "sparse"):
        policies = [PolicyModule(m, gradient=gradient, temperature=1.0) for m in (plain, again)]
        for policy in policies:
            policy.take_work()
        stats = [policy(batch, every_T) for policy in policies]
        more = stats[1].flops - stats[0].flops
        assert more >= body_flops(plain, stats[0].body_tokens, stats[0].body_tokens)
        assert [policy.take_work().flops for policy in policies] == [s.flops for s in stats]
        with torch.no_grad():
            assert policies[0](batch, every_T).flops == policies[1](batch, every_T).flops


def test_a_policy_counts_its_work_until_it_is_asked() -> None:
    batch = make_batch()
    policy = PolicyModule(tiny_model(), gradient="sparse", temperature=1.0)
    stats = policy.annotate(batch, max_tokens=1000)
    work = policy.take_work()
    assert (work.nograd_tokens, work.flops) == (stats.cached_tokens, stats.flops)
    assert (work.body_tokens, work.head_rows, work.dense_tokens) == (0, 0, 0)
    policy.passes(batch, batch.pool_T, max_tokens=1000)
    rows = policy(batch, batch.pool_T)
    work = policy.take_work()
    longest = max(
        len(p) + len(c) for p, c in zip(batch.prompts_B, batch.completions_B, strict=True)
    )
    assert work.dense_tokens == batch.num_sequences * longest  # 9 sequences in one rectangle
    assert (work.head_rows, work.body_tokens) == (len(rows.rows_R), rows.body_tokens)
    saved = work.metrics()["work/tokens_saved_fraction"]
    assert saved == 1 - work.body_tokens / work.dense_tokens
    assert policy.take_work() == Work()


def test_a_model_whose_work_was_counted_can_be_freed() -> None:
    model = tiny_model()
    body_flops(model, 1, 1)
    enable_checkpointing(model)
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None
