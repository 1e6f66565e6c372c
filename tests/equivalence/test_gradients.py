"""Sparse and dense take the same gradient, and unselected tokens take none."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from forkpoint.batching import build_batch, split_microbatches
from forkpoint.batching.tree import TreeRows
from forkpoint.config import parse_config
from forkpoint.config.run import RunConfig
from forkpoint.config.stages import ModelConfig
from forkpoint.errors import ModelError
from forkpoint.losses import batch_loss, with_coefficients
from forkpoint.losses.batch_loss import needed_rows
from forkpoint.policy import PolicyModule, load_model
from forkpoint.policy.live import LiveSet
from forkpoint.policy.load import enable_checkpointing
from forkpoint.policy.local import local_stats
from forkpoint.policy.sparse import tree_stats
from forkpoint.selection import scope_groups, select
from forkpoint.types import TokenBatch, TokenStats
from tests.conftest import make_batch, make_group, tiny_model


def prepared(batch: TokenBatch, config: RunConfig, temperature: float = 1.0) -> TokenBatch:
    """Selected by its rollout entropies, with old and reference log-probabilities near by."""
    assert batch.rollout_entropies_T is not None
    chosen = select(
        batch,
        batch.rollout_entropies_T,
        torch.zeros_like(batch.sequence_T),
        config.selection,
        seed=0,
        step=1,
    )
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(2, batch.num_tokens, generator=generator) * 0.3
    policy = PolicyModule(tiny_model(tied=True), gradient="dense", temperature=temperature)
    logprobs = policy.annotate(batch, max_tokens=10_000).logprobs_R
    batch = batch.with_streams(
        old_logprobs_T=logprobs + noise[0], reference_logprobs_T=logprobs + noise[1]
    )
    groups = scope_groups(batch, "batch", [])
    return with_coefficients(batch, chosen.weights_T, groups, config)


def gradient(
    batch: TokenBatch,
    config: RunConfig,
    cut: list[list[int]],
    kind: str,
    temperature: float,
    rows: str = "auto",
) -> tuple[float, torch.Tensor]:
    model = tiny_model(tied=True)
    policy = PolicyModule(model, gradient=kind, temperature=temperature, rows=rows)
    total = 0.0
    for sequences in cut:
        micro = batch.take(sequences)
        wanted = needed_rows(micro, config.loss)
        if not wanted.any():
            continue
        output = batch_loss(micro, policy(micro, wanted), config.loss)
        output.loss.backward()
        total += output.loss.item()
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return total, flat


LOSSES: list[dict[str, Any]] = [
    {},
    {"preset": "grpo"},
    {"preset": "dr_grpo"},
    {"preset": "gspo", "clip_low": 0.2, "clip_high": 0.28},  # its own bounds clip everything here
    {"preset": "cispo"},
    {"surrogate": "reinforce", "denominator": "all"},
    {"dual_clip": 3.0, "denominator": "sequence_selected"},
    {"kl_coefficient": 0.1, "entropy_bonus": 0.05},
    {"kl_coefficient": 0.1, "kl": "k2", "entropy_bonus": 0.05, "penalties_on": "all"},
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda d: "-".join(map(str, d.values())) or "default")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sparse_equals_dense_for_any_cut(loss: dict[str, Any], temperature: float) -> None:
    config = parse_config({"loss": loss, "selection": {"keep_fraction": 0.3}})
    batch = prepared(make_batch(), config, temperature)
    whole = [list(range(batch.num_sequences))]
    value, exact = gradient(batch, config, whole, "dense", temperature)
    assert exact.abs().max() > 1e-3
    cuts = [whole, [[b] for b in range(9)], [[8, 0, 3], [5, 4], [1, 2, 7, 6]]]
    cuts.append(split_microbatches(batch, max_tokens=40))
    for cut in cuts:
        for kind, rows in (("sparse", "tree"), ("sparse", "padded"), ("dense", "padded")):
            other, grad = gradient(batch, config, cut, kind, temperature, rows)
            assert other == pytest.approx(value, rel=1e-5, abs=1e-7)
            assert (grad - exact).norm() / exact.norm() < 1e-5


def test_gradient_is_exactly_zero_at_the_logits_of_unselected_tokens() -> None:
    # reinforce, since a clipped token has no gradient though it is selected
    config = parse_config({"selection": {"keep_fraction": 0.3}, "loss": {"surrogate": "reinforce"}})
    batch = prepared(make_batch(), config)
    model = tiny_model(tied=True)
    seen: list[torch.Tensor] = []

    def keep_logits(module: Any, inputs: Any, output: Any) -> None:
        output.logits.retain_grad()
        seen.append(output.logits)

    model.register_forward_hook(keep_logits)
    policy = PolicyModule(model, gradient="dense", temperature=1.0)
    output = batch_loss(batch, policy(batch, batch.pool_T), config.loss)
    output.loss.backward()
    grad_BLV = seen[0].grad
    assert grad_BLV is not None
    assert batch.weights_T is not None
    expected = torch.zeros(grad_BLV.shape[:2], dtype=torch.bool)
    for token in batch.weights_T.nonzero().flatten().tolist():
        sequence = int(batch.sequence_T[token])
        column = len(batch.prompts_B[sequence]) + int(batch.position_T[token]) - 1
        expected[sequence, column] = True
    assert torch.equal(grad_BLV.abs().amax(-1) != 0, expected)


def small_wanted() -> tuple[TokenBatch, torch.Tensor]:
    config = parse_config({"selection": {"keep_fraction": 0.1}})
    batch = prepared(make_batch(), config)
    return batch, needed_rows(batch, config.loss)


def body_shapes(model: Any) -> list[torch.Size]:
    """Filled with the shape of every pass through the layers."""
    shapes: list[torch.Size] = []
    model.base_model.register_forward_hook(lambda m, i, o: shapes.append(o.last_hidden_state.shape))
    return shapes


def ends_of(batch: TokenBatch, rows: list[int]) -> dict[int, int]:
    """Sequence -> completion tokens before its last wanted one."""
    ends: dict[int, int] = {}
    for row in rows:
        ends[int(batch.sequence_T[row])] = int(batch.position_T[row])
    return ends


def test_padded_rows_hold_no_dead_sequence_no_tail_and_no_other_head_row() -> None:
    batch, wanted = small_wanted()
    model = tiny_model()
    policy = PolicyModule(model, gradient="sparse", temperature=1.0, rows="padded")
    shapes = body_shapes(model)
    stats = policy(batch, wanted)
    rows = stats.rows_R.tolist()
    assert rows == wanted.nonzero().flatten().tolist()
    ends = ends_of(batch, rows)
    width = max(len(batch.prompts_B[b]) + end for b, end in ends.items())
    assert shapes == [torch.Size([len(ends), width, 32])]
    assert stats.body_tokens == len(ends) * width


def test_tree_rows_hold_each_prompt_once_and_nothing_else_twice() -> None:
    batch, wanted = small_wanted()
    model = tiny_model()
    policy = PolicyModule(model, gradient="sparse", temperature=1.0, rows="tree")
    policy.row_tokens = 512
    shapes = body_shapes(model)
    stats = policy(batch, wanted)
    assert stats.rows_R.tolist() == wanted.nonzero().flatten().tolist()
    ends = ends_of(batch, stats.rows_R.tolist())
    prompts = {tuple(batch.prompts_B[b].tolist()) for b in ends}
    assert len(prompts) < len(ends)  # something is shared
    tokens = sum(map(len, prompts)) + sum(ends.values())
    assert shapes == [torch.Size([1, tokens, 32])]
    assert stats.body_tokens == tokens


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_trees_are_taken_by_every_attention_that_takes_a_mask(attention: str) -> None:
    model = tiny_model()
    model.set_attn_implementation(attention)
    assert PolicyModule(model, gradient="sparse", temperature=1.0).rows == "tree"
    batch, wanted = small_wanted()
    stats = PolicyModule(model, gradient="sparse", temperature=1.0)(batch, wanted)
    exact = PolicyModule(model, gradient="dense", temperature=1.0)(batch, wanted)
    torch.testing.assert_close(stats.logprobs_R, exact.logprobs_R[wanted], rtol=0, atol=1e-5)


@pytest.mark.slow  # it is compiled
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch itself
def test_flex_attention_takes_tree_rows() -> None:
    # forward alone: FlexAttention has no backward on a CPU
    model = tiny_model()
    exact = PolicyModule(model, gradient="dense", temperature=1.0)
    groups = [make_group(i, [1.0, 0.0], [150, 170], prompt_length=140) for i in range(2)]
    batch = build_batch(groups, advantage="grpo")
    wanted = batch.position_T % 3 == 0
    expected = exact(batch, wanted).logprobs_R[wanted]
    model.set_attn_implementation("flex_attention")
    with torch.no_grad():
        got = tree_stats(model, batch, wanted, 1.0, width=1000).logprobs_R  # 8 blocks of columns
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of torch: it is not compiled, and that is slow
@pytest.mark.parametrize(
    "stats",
    [
        tree_stats,
        partial(local_stats, live=LiveSet(fraction=0.7)),
        partial(local_stats, live=LiveSet(fraction=0.7, first_hop=False)),
        partial(local_stats, live=LiveSet(kind="forks", first_hop=False)),
    ],
)
def test_flex_attention_sees_by_tree_and_branch(
    stats: Callable[..., TokenStats], monkeypatch: pytest.MonkeyPatch
) -> None:
    # forward alone and not compiled: torch 2.13's compiler for CPUs fails on the slots of local.
    # Not compiled, torch asks who sees whom for every pair, and skips no block.
    monkeypatch.setattr(
        "transformers.integrations.flex_attention.WrappedFlexAttention.__call__",
        lambda _: flex_attention,
    )
    model = tiny_model()
    exact = PolicyModule(model, gradient="dense", temperature=1.0)
    groups = [make_group(i, [1.0, 0.0], [250, 270], prompt_length=140) for i in range(2)]
    batch = build_batch(groups, advantage="grpo")
    wanted = batch.position_T % 2 == 0
    expected = exact(batch, wanted).logprobs_R[wanted]
    model.set_attn_implementation("flex_attention")
    masks: list[Any] = []
    model.base_model.register_forward_pre_hook(
        lambda _, __, given: masks.append(given["attention_mask"]), with_kwargs=True
    )
    with torch.no_grad():
        got = stats(model, batch, wanted, 1.0, width=700).logprobs_R
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    used = [mask for mask in masks if mask.numel() > 1]  # the first hop's run stops before its mask
    assert {type(mask) for mask in used} == {BlockMask}  # a dense one would be taken, too


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_of_one_sequence_need_no_mask(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    model.set_attn_implementation(attention)
    batch, wanted = small_wanted()
    asked: list[dict[str, Any]] = []
    model.base_model.register_forward_pre_hook(
        lambda _, __, given: asked.append(given), with_kwargs=True
    )
    found = []
    for plain in (True, False):
        if not plain:
            monkeypatch.setattr(TreeRows, "plain", False)
        model.zero_grad()
        stats = tree_stats(model, batch, wanted, 1.0, width=1)  # several rows, padded on the right
        (stats.logprobs_R.sum() + stats.entropies_R.sum()).backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((stats.logprobs_R, stats.entropies_R, torch.cat(grads)))
    assert [given.get("attention_mask") is None for given in asked] == [True, False]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_flex_attention_on_a_cpu_is_refused() -> None:
    config = ModelConfig(path="lab:game", attention="flex_attention", device="cpu")
    with pytest.raises(ModelError, match="FlexAttention has no backward pass on a CPU"):
        load_model(config, trained=True)


def test_a_model_with_sliding_windows_gets_padded_rows() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = MistralConfig(vocab_size=61, sliding_window=4, **shape, **heads)
    model = MistralForCausalLM(config).eval()
    assert PolicyModule(model, gradient="sparse", temperature=1.0).rows == "padded"
    with pytest.raises(ModelError, match="needs tree rows, which MistralForCausalLM"):
        PolicyModule(model, gradient="local", temperature=1.0)


def test_checkpointed_layers_give_the_same_gradient_and_are_run_twice() -> None:
    config = parse_config({"selection": {"keep_fraction": 0.3}})
    batch = prepared(make_batch(), config)
    wanted = needed_rows(batch, config.loss)
    found = []
    for checkpointing in (False, True):
        model = tiny_model(tied=True)
        runs: list[int] = []
        if checkpointing:
            enable_checkpointing(model)
        policy = PolicyModule(model, gradient="sparse", temperature=1.0, rows="tree")
        model.base_model.layers[0].mlp.register_forward_pre_hook(lambda m, i, r=runs: r.append(1))
        batch_loss(batch, policy(batch, wanted), config.loss).loss.backward()
        flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((flat, len(runs)))
        assert not model.training  # no dropout: the policy is one function
    (plain, once), (checkpointed, twice) = found
    assert (once, twice) == (1, 2)
    assert (plain - checkpointed).norm() / plain.norm() < 1e-6
