"""Truncated importance weights: min(pi_old / pi_sampler, cap) on every coefficient, by hand."""

import math
from dataclasses import replace

import pytest
import torch

from forkpoint.config import RunConfig, parse_config
from forkpoint.losses import batch_loss, with_coefficients
from forkpoint.losses.batch_loss import needed_rows
from forkpoint.policy import PolicyModule
from forkpoint.training import annotate as module
from forkpoint.training.annotate import annotate
from forkpoint.training.meter import Meter
from forkpoint.training.optimizer import Optimizer
from forkpoint.training.step import train_step
from forkpoint.types import TokenBatch, TokenStats
from tests.conftest import make_batch, tiny_model


def config_of(cap: float | str) -> RunConfig:
    return parse_config(
        {
            "selection": {"keep_fraction": 0.3},
            "loss": {"importance_cap": cap},
            "training": {"mini_batches": 1},
        }
    )


def annotated(
    monkeypatch: pytest.MonkeyPatch, old: list[float], sampled: list[float], cap: float | str
) -> tuple[TokenBatch, dict[str, float]]:
    """A batch whose log-probabilities begin with the given ones, and the step's metrics."""
    batch = make_batch()
    rollout_T = torch.full_like(batch.rollout_logprobs_T, -1.0)
    rollout_T[: len(sampled)] = torch.tensor(sampled)
    old_T = torch.full_like(rollout_T, -1.0)
    old_T[: len(old)] = torch.tensor(old)
    stats = TokenStats(
        rows_R=torch.arange(len(old_T)),
        logprobs_R=old_T,
        entropies_R=torch.zeros_like(old_T),
        energies_R=torch.zeros_like(old_T),
        body_tokens=0,
    )
    monkeypatch.setattr(module, "all_tokens", lambda *_, **__: stats)
    batch = batch.with_streams(rollout_logprobs_T=rollout_T)
    meter = Meter()
    policy = PolicyModule(tiny_model(), gradient="sparse", temperature=1.0)
    found = annotate(policy, batch, config_of(cap), meter, step=1, same_weights=False)
    return found, meter.means()


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios 1/2, 3 and, where the sampler's probability is not known, 1; the others are 1."""
    half, three = math.log(0.5), math.log(3.0)
    batch, metrics = annotated(
        monkeypatch, [-1.0 + half, -1.0 + three, -2.0], [-1.0, -1.0, math.nan], cap=2.0
    )
    assert batch.importance_T is not None
    assert batch.importance_T[:4].tolist() == pytest.approx([0.5, 2.0, 1.0, 1.0])
    count = int(batch.mask_T.sum())
    assert metrics["mismatch/importance_mean"] == pytest.approx((count + 1.5) / count)
    assert metrics["mismatch/truncated_share"] == pytest.approx(1 / count)


def test_a_ratio_beyond_all_bounds_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, _ = annotated(monkeypatch, [-1.0, -1e4], [-1e4, -1.0], cap=1e9)
    assert batch.importance_T is not None
    assert batch.importance_T[:2].tolist() == pytest.approx([math.exp(20), math.exp(-20)])


def test_without_a_cap_there_are_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, metrics = annotated(monkeypatch, [-3.0], [-1.0], cap="none")
    assert batch.importance_T is None
    assert "mismatch/truncated_share" not in metrics


@pytest.mark.parametrize("gradient", ["dense", "sparse"])
@pytest.mark.parametrize("denominator", ["selected", "all", "sequence"])
def test_value_and_gradient_are_those_of_a_loop_in_float64(gradient: str, denominator: str) -> None:
    """loss = - sum_t min(pi_old / pi_sampler, cap) w_t / D min( r A, clip(r) A ), D without it."""
    config = parse_config(
        {"selection": {"keep_fraction": 0.5}, "loss": {"denominator": denominator}}
    )
    batch = make_batch()
    generator = torch.Generator().manual_seed(5)
    count = batch.num_tokens
    weights_T = (torch.rand(count, generator=generator) < 0.5).float() * batch.mask_T
    old_T = -3 * torch.rand(count, generator=generator)
    importance_T = (old_T - batch.rollout_logprobs_T).exp().clamp(max=2.0)
    batch = batch.with_streams(old_logprobs_T=old_T, importance_T=importance_T)
    groups_T = torch.zeros(count, dtype=torch.int64)
    found = with_coefficients(batch, weights_T, groups_T, config)
    plain = with_coefficients(
        replace(batch, importance_T=None), weights_T, groups_T, config
    ).coefficients_T
    model = tiny_model()
    policy = PolicyModule(model, gradient=gradient, temperature=1.0)
    stats = policy(found, needed_rows(found, config.loss))
    loss = batch_loss(found, stats, config.loss).loss
    loss.backward()
    gradient_of = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    exact = tiny_model().double()
    total = torch.zeros((), dtype=torch.float64)
    for b in range(batch.num_sequences):
        prompt, completion = batch.prompts_B[b], batch.completions_B[b]
        logits = exact(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        logp = logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]
        for t, row in enumerate(batch.rows_of([b]).tolist()):
            assert plain is not None
            ratio, advantage = (
                (logp[t] - old_T[row].double()).exp(),
                batch.advantages_T[row].double(),
            )
            clipped = ratio.clamp(1 - config.loss.clip_low, 1 + config.loss.clip_high)
            surrogate = torch.minimum(ratio * advantage, clipped * advantage)
            total = total - importance_T[row].double() * plain[row].double() * surrogate
    total.backward()
    assert float(loss.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    for name, parameter in exact.named_parameters():
        if name in gradient_of and parameter.grad is not None:
            gap = (gradient_of[name].double() - parameter.grad).norm() / parameter.grad.norm()
            assert gap < 1e-4, name


def test_a_token_of_which_the_sampler_says_nothing_leaves_the_mismatch_a_number() -> None:
    config = parse_config({"selection": {"rule": "all"}, "training": {"mini_batches": 1}})

    def mismatch(batch: TokenBatch) -> float:
        model = tiny_model()
        policy = PolicyModule(model, gradient="sparse", temperature=1.0)
        optimizer = Optimizer(model, config.optim)
        step = train_step(policy, optimizer, batch, config, step=1, same_weights=False)
        return step.metrics["mismatch/kl"]

    batch = make_batch()
    unknown_T = batch.rollout_logprobs_T.clone()
    unknown_T[3] = math.nan
    found, known = mismatch(replace(batch, rollout_logprobs_T=unknown_T)), mismatch(batch)
    assert math.isfinite(found)
    assert found == pytest.approx(known, rel=0.5)
    assert found != known
