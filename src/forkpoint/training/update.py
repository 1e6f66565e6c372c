"""One optimizer update: the gradient of a mini-batch, a micro-batch at a time."""

import math
from collections import defaultdict

import torch
from torch import Tensor

from forkpoint.config.run import RunConfig
from forkpoint.losses.batch_loss import needed_rows
from forkpoint.policy.module import PolicyModule
from forkpoint.training.gradient import against_exact, gradient_of
from forkpoint.training.meter import Meter
from forkpoint.training.optimizer import Optimizer
from forkpoint.types import Metric, TokenBatch, TokenStats


def update(
    policy: PolicyModule,
    optimizer: Optimizer,
    part: TokenBatch,
    config: RunConfig,
    meter: Meter,
    *,
    on_policy: bool,
    checks: bool = False,
) -> str | None:
    """Loss and gradient of each micro-batch, then one update; why it was skipped, if it was.

    The host waits for nothing between the passes. Processes share the passes, and what decides is
    added up over them.

    Args:
        part: a mini-batch with coefficients.
        on_policy: no update was made since sampling, so a difference between the sampler's and
            the trainer's log-probabilities is numerical mismatch.
        checks: compare the gradient with the exact one.
    """
    ranks, loss_config = policy.ranks, config.loss
    if on_policy and loss_config.marked is not None:
        # Nothing has drifted yet: the sign of a difference would be the sign of its rounding.
        still = loss_config.marked.model_copy(update={"drift_coefficient": 0.0})
        loss_config = loss_config.model_copy(update={"marked": still})
    losses: list[Tensor] = []
    shares: defaultdict[str, list[Tensor]] = defaultdict(list)
    given = (policy, part, needed_rows(part, config.loss).cpu(), loss_config, config.training)
    for micro, stats, output in gradient_of(*given):
        losses.append(output.loss.detach())
        for name, share in output.shares.items():
            shares[name].append(share)
        for name, metric in output.metrics.items():
            meter.add(name, metric)
        if on_policy:
            meter.add("mismatch/kl", _mismatch(micro, stats))
    loss = sum(losses, torch.zeros((), device=part.token_ids_T.device))
    passes, loss_sum = ranks.add(torch.stack([loss.new_tensor(len(losses)), loss])).tolist()
    if not passes or not math.isfinite(loss_sum):
        optimizer.zero_grad()
        # Without a pass no token of this mini-batch was selected: nothing to learn from it.
        return "the loss is not finite" if passes else None
    if checks:
        for name, value in against_exact(*given).items():
            meter.add(name, Metric(value, 1))
    meter.add("optim/lr", Metric(optimizer.lr, 1))
    norm = optimizer.step()
    policy.weights_changed()
    if not math.isfinite(norm):
        return "the gradient is not finite"
    meter.add("grad/norm", Metric(norm, 1))
    for name, parts in shares.items():
        meter.add(name, Metric(torch.stack(parts).sum(), 0))
    for name in dict.fromkeys(name for names in ranks.gather(list(shares)) for name in names):
        meter.add(name, Metric(0.0, int(ranks.first)))  # one update
    return None


def _mismatch(batch: TokenBatch, stats: TokenStats) -> Metric:
    """KL(sampler, trainer) by k3 over the rows that were run: sum of exp(d) - d - 1. Rows of which
    the sampler gave no log-probability are left out."""
    sampled_R = batch.rollout_logprobs_T[stats.rows_R]
    difference_R = (stats.logprobs_R.detach() - sampled_R).double()
    difference_R = difference_R[~difference_R.isnan()]
    return Metric((difference_R.exp() - difference_R - 1).sum(), len(difference_R))
