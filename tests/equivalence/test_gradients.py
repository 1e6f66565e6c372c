"""Sparse and dense take the same gradient, and unselected tokens take none."""

from typing import Any

import pytest
import torch

from forkpoint.batching import split_microbatches
from forkpoint.config import parse_config
from forkpoint.config.run import RunConfig
from forkpoint.losses import policy_loss, with_coefficients
from forkpoint.losses.policy_loss import needed_rows
from forkpoint.policy import PolicyModule
from forkpoint.selection import scope_groups, select
from forkpoint.types import TokenBatch
from tests.conftest import make_batch, tiny_model


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
    logprobs, _ = policy.annotate(batch, [list(range(batch.num_sequences))])
    batch = batch.with_streams(
        old_logprobs_T=logprobs + noise[0], reference_logprobs_T=logprobs + noise[1]
    )
    groups = scope_groups(batch, "batch", [])
    return with_coefficients(batch, chosen.weights_T, groups, config)


def gradient(
    batch: TokenBatch, config: RunConfig, cut: list[list[int]], kind: str, temperature: float
) -> tuple[float, torch.Tensor]:
    model = tiny_model(tied=True)
    policy = PolicyModule(model, gradient=kind, temperature=temperature)
    total = 0.0
    for sequences in cut:
        micro = batch.take(sequences)
        wanted = needed_rows(micro, config.loss)
        if not wanted.any():
            continue
        output = policy_loss(micro, policy(micro, wanted), config.loss)
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
        for kind in ("sparse", "dense"):
            other, grad = gradient(batch, config, cut, kind, temperature)
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
    output = policy_loss(batch, policy(batch, batch.pool_T), config.loss)
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


def test_sparse_runs_no_dead_sequence_no_tail_and_no_other_head_row() -> None:
    config = parse_config({"selection": {"keep_fraction": 0.1}})
    batch = prepared(make_batch(), config)
    wanted = needed_rows(batch, config.loss)
    model = tiny_model()
    body_shapes: list[torch.Size] = []
    model.base_model.register_forward_hook(
        lambda m, i, o: body_shapes.append(o.last_hidden_state.shape)
    )
    stats = PolicyModule(model, gradient="sparse", temperature=1.0)(batch, wanted)
    rows = stats.rows_R.tolist()
    assert rows == wanted.nonzero().flatten().tolist()
    alive = {int(batch.sequence_T[r]) for r in rows}
    ends = {
        b: max(int(batch.position_T[r]) for r in rows if int(batch.sequence_T[r]) == b)
        for b in alive
    }
    width = max(len(batch.prompts_B[b]) + ends[b] for b in alive)
    assert body_shapes == [torch.Size([len(alive), width, 32])]
    assert stats.body_tokens == len(alive) * width
