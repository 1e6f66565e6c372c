"""What must not change a loss or its gradient: the cut into micro-batches and masked sequences."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forkpoint.batching import build_batch, split_microbatches
from forkpoint.config import parse_config
from forkpoint.config.run import RunConfig
from forkpoint.losses import DENOMINATORS, SURROGATES, batch_loss, with_coefficients
from forkpoint.losses.batch_loss import needed_rows
from forkpoint.selection import scope_groups
from forkpoint.types import FinishReason, Metric, TokenBatch, TokenStats
from tests.conftest import make_group

PENALTIES: list[dict[str, Any]] = [
    {},
    {"kl_coefficient": 0.3, "entropy_bonus": 0.2},
    {"kl_coefficient": 0.3, "entropy_bonus": 0.2, "penalties_on": "all"},
]


@st.composite
def batches(draw: st.DrawFn) -> TokenBatch:
    """1 to 3 groups; a group may be truncated, and is masked then; streams and weights drawn."""
    groups = []
    for serial in range(draw(st.integers(1, 3))):
        lengths = draw(st.lists(st.integers(1, 6), min_size=2, max_size=3))
        finish = draw(st.sampled_from(FinishReason)) if serial else FinishReason.STOP
        rewards = [1.0] + [0.0] * (len(lengths) - 1)
        groups.append(make_group(serial, rewards, lengths, finish=finish))
    batch = build_batch(groups, advantage="grpo", truncated="mask")
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    old_T, reference_T, weights_T = torch.rand(3, batch.num_tokens, generator=generator)
    weights_T = torch.where(batch.pool_T & (weights_T > draw(st.floats(0, 1))), weights_T, 0.0)
    return batch.with_streams(
        old_logprobs_T=-2 * old_T, reference_logprobs_T=-2 * reference_T, weights_T=weights_T
    )


@st.composite
def cuts(draw: st.DrawFn, count: int) -> list[list[int]]:
    """The sequences in any order, in parts of any size."""
    order = draw(st.permutations(range(count)))
    edges = draw(st.lists(st.integers(0, count), max_size=count).map(sorted))
    return [order[a:b] for a, b in zip([0, *edges], [*edges, count], strict=True) if a < b]


def run_config(surrogate: str, denominator: str, penalties: dict[str, Any]) -> RunConfig:
    micro = denominator == "microbatch_selected"
    loss = {"surrogate": surrogate, "denominator": denominator, "dual_clip": 2.0, **penalties}
    return parse_config(
        {
            "loss": loss,
            "selection": {"scope": "microbatch"} if micro else {},
            "training": {"micro_batch_sequences": 2},
        }
    )


def with_its_coefficients(batch: TokenBatch, config: RunConfig) -> TokenBatch:
    """Coefficients of the whole mini-batch; micro-batches of two where those are the method."""
    assert batch.weights_T is not None
    pairs = split_microbatches(batch, max_tokens=0, sequences=2)
    groups_T = scope_groups(batch, config.selection.scope, pairs)
    return with_coefficients(batch, batch.weights_T, groups_T, config)


def run(
    batch: TokenBatch, cut: Sequence[Sequence[int]], config: RunConfig, *, dense: bool
) -> tuple[float, Tensor, Tensor, dict[str, float], dict[str, Metric]]:
    """Loss, gradients by leaf log-probabilities and entropies, shares and metrics, summed up."""
    generator = torch.Generator().manual_seed(7)
    logp_T, entropy_T = torch.rand(2, batch.num_tokens, generator=generator)
    logp_T = (-2 * logp_T).requires_grad_()
    entropy_T.requires_grad_()
    total, shares, metrics = torch.zeros(()), {}, {}
    for sequences in cut:
        micro, rows = batch.take(sequences), batch.rows_of(sequences)
        wanted_T = torch.ones_like(micro.pool_T) if dense else needed_rows(micro, config.loss)
        rows_R = wanted_T.nonzero().flatten()
        stats = TokenStats(
            rows_R=rows_R,
            logprobs_R=logp_T[rows][rows_R],
            entropies_R=entropy_T[rows][rows_R],
            energies_R=torch.zeros_like(entropy_T[rows][rows_R]),
            body_tokens=0,
        )
        output = batch_loss(micro, stats, config.loss)
        total = total + output.loss
        for name, value in output.shares.items():
            shares[name] = shares.get(name, 0.0) + float(value)
        for name, metric in output.metrics.items():
            metrics[name] = metrics.get(name, Metric(0, 0)) + metric
    gradients = torch.autograd.grad(total, [logp_T, entropy_T], materialize_grads=True)
    return total.item(), *gradients, shares, metrics


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("denominator", DENOMINATORS)
@settings(deadline=None, max_examples=15)
@given(data=st.data(), batch=batches(), penalties=st.sampled_from(PENALTIES))
def test_any_cut_gives_the_same_loss_and_gradient(
    surrogate: str,
    denominator: str,
    data: st.DataObject,
    batch: TokenBatch,
    penalties: dict[str, Any],
) -> None:
    config = run_config(surrogate, denominator, penalties)
    batch = with_its_coefficients(batch, config)
    whole = run(batch, [range(batch.num_sequences)], config, dense=True)
    cut = data.draw(cuts(batch.num_sequences))
    for dense in (False, True):
        part = run(batch, cut, config, dense=dense)
        assert part[0] == pytest.approx(whole[0], rel=1e-5, abs=1e-6)
        torch.testing.assert_close(part[1], whole[1], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(part[2], whole[2], rtol=1e-5, atol=1e-7)
        assert part[3] == pytest.approx(whole[3], rel=1e-5, abs=1e-6)
        assert part[4].keys() == whole[4].keys()
        for name, metric in whole[4].items():
            assert part[4][name].count == metric.count
            assert part[4][name].sum == pytest.approx(float(metric.sum), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("penalties", PENALTIES, ids=lambda p: "-".join(p) or "none")
@settings(deadline=None, max_examples=30)
@given(batch=batches())
def test_the_loss_is_the_sum_of_its_shares(batch: TokenBatch, penalties: dict[str, Any]) -> None:
    config = run_config("ppo_clip", "selected", penalties)
    batch = with_its_coefficients(batch, config)
    loss, _, _, shares, _ = run(batch, [range(batch.num_sequences)], config, dense=False)
    expected = (
        shares["loss/policy"]
        + config.loss.kl_coefficient * shares.get("loss/kl", 0.0)
        - config.loss.entropy_bonus * shares.get("loss/entropy_bonus", 0.0)
    )
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert len(shares) == 1 + 2 * bool(penalties)


@pytest.mark.parametrize("denominator", ["selected", "all", "all_per_update"])
@settings(deadline=None, max_examples=30)
@given(data=st.data(), batch=batches(), penalties=st.sampled_from(PENALTIES))
def test_where_tokens_are_counted_masked_sequences_might_as_well_not_be_there(
    denominator: str, data: st.DataObject, batch: TokenBatch, penalties: dict[str, Any]
) -> None:
    config = run_config("ppo_clip", denominator, penalties)
    kept = [b for b in range(batch.num_sequences) if batch.mask_T[batch.sequence_T == b].all()]
    order = data.draw(st.permutations(kept))
    full = with_its_coefficients(batch, config)
    bare = with_its_coefficients(batch.take(order), config)
    rows = batch.rows_of(order)
    for stream in ("coefficients_T", "penalty_coefficients_T"):
        of_full, of_bare = getattr(full, stream), getattr(bare, stream)
        if of_full is None:
            assert of_bare is None
            continue
        torch.testing.assert_close(of_bare, of_full[rows])
        assert not of_full[~batch.mask_T].any()


@settings(deadline=None, max_examples=50)
@given(batch=batches())
def test_unselected_tokens_take_no_gradient_of_the_policy_term(batch: TokenBatch) -> None:
    assert batch.weights_T is not None
    for surrogate in SURROGATES:
        config = run_config(surrogate, "selected", {})
        ready = with_its_coefficients(batch, config)
        _, gradient_T, _, _, _ = run(ready, [range(batch.num_sequences)], config, dense=True)
        assert not gradient_T[batch.weights_T == 0].any()
        if surrogate == "reinforce":  # no clip takes a gradient away: the others all have one
            assert gradient_T[batch.weights_T > 0].all()
