"""One optimizer update: the gradient of a mini-batch, a micro-batch at a time."""

import math
from collections import defaultdict

import torch
from torch import Tensor

from forkpoint.config.run import RunConfig
from forkpoint.losses import policy_loss
from forkpoint.losses.policy_loss import needed_rows
from forkpoint.policy.module import PolicyModule
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
) -> str | None:
    """Loss and gradient of each micro-batch, then one update; why it was skipped, if it was.

    Whether a loss is finite is all that the host waits for in a micro-batch.

    Args:
        part: a mini-batch with coefficients.
        on_policy: no update was made since sampling, so a difference between the sampler's and
            the trainer's log-probabilities is numerical mismatch.
    """
    shares: defaultdict[str, list[Tensor]] = defaultdict(list)
    wanted_T = needed_rows(part, config.loss).cpu()  # the host plans the passes
    for sequences in policy.passes(
        part,
        wanted_T,
        max_tokens=config.training.micro_batch_tokens,
        max_sequences=config.training.micro_batch_sequences,
    ):
        micro, wanted = part.take(sequences), wanted_T[part.rows_of(sequences)]
        if not wanted.any():
            continue  # a loss of zero with a gradient of zero
        stats = policy(micro, wanted)
        output = policy_loss(micro, stats, config.loss)
        if not output.loss.isfinite():
            optimizer.zero_grad()
            return "the loss is not finite"
        output.loss.backward()
        for name, share in output.shares.items():
            shares[name].append(share)
        for name, metric in output.metrics.items():
            meter.add(name, metric)
        if on_policy:
            meter.add("mismatch/kl", _mismatch(micro, stats))
    if not shares:
        return None  # no token of this mini-batch was selected: nothing to learn from it
    meter.add("optim/lr", Metric(optimizer.lr, 1))
    norm = optimizer.step()
    policy.weights_changed()
    if not math.isfinite(norm):
        return "the gradient is not finite"
    meter.add("grad/norm", Metric(norm, 1))
    for name, parts in shares.items():
        meter.add(name, Metric(torch.stack(parts).sum(), 1))
    return None


def _mismatch(batch: TokenBatch, stats: TokenStats) -> Metric:
    """KL(sampler, trainer) by k3 over the rows that were run: sum of exp(d) - d - 1."""
    sampled_R = batch.rollout_logprobs_T[stats.rows_R]
    difference_R = (stats.logprobs_R.detach() - sampled_R).double()
    return Metric((difference_R.exp() - difference_R - 1).sum(), len(stats.rows_R))
