"""One step of RLVR on forking tokens: the paper's algorithm on one page.

annotate   log-probabilities and entropies of the policy before the first update
select     the tokens that get a policy gradient, by entropy over the whole step
update     per mini-batch: coefficients once, then loss and gradient a micro-batch at a time
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from forkpoint.batching import split_microbatches, split_minibatches
from forkpoint.config.run import RunConfig
from forkpoint.losses import with_coefficients
from forkpoint.losses.denominators import step_totals
from forkpoint.policy.module import PolicyModule
from forkpoint.selection import scope_groups
from forkpoint.training.annotate import annotate
from forkpoint.training.bad_steps import NOTHING_SELECTED
from forkpoint.training.choose import choose, chosen_at_once
from forkpoint.training.meter import Meter
from forkpoint.training.optimizer import Optimizer
from forkpoint.training.update import update
from forkpoint.types import TokenBatch, sent


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step did, on the CPU. Made by ``train_step``, for ``training.loop``."""

    batch: TokenBatch
    """With the weights of every token and the entropies they were selected by."""
    entropies_T: Tensor
    """float32 [T] nats, of the source that selected."""
    metrics: dict[str, float]
    fault: str | None
    """Why at least one update was skipped, or that no token of the whole step was selected."""


def train_step(
    policy: PolicyModule,
    optimizer: Optimizer,
    batch: TokenBatch,
    config: RunConfig,
    *,
    step: int,
    same_weights: bool,
    reference: PolicyModule | None = None,
) -> StepResult:
    """Up to ``training.mini_batches`` optimizer updates on the rollouts of one step.

    Args:
        batch: from ``build_batch``.
        same_weights: the sampler claims to hold the policy's own weights.
        reference: the frozen model of the KL penalty.

    Raises:
        SelectionError: the pool is empty, or the engine gave a completion without entropies.
        NumericalError: entropies are not finite.
    """
    training = config.training
    meter = Meter(policy, *([reference] if reference else []))
    batch = batch.to(policy.device)
    batch = annotate(
        *(policy, batch, config, meter), step=step, same_weights=same_weights, reference=reference
    )
    weights_T = torch.zeros_like(batch.advantages_T)
    entropies_T = torch.zeros_like(weights_T)
    at_once = chosen_at_once(config)
    if at_once:
        groups_T = scope_groups(batch, "batch", [])
        found = choose(policy, batch, groups_T, config, meter, step=step)
        entropies_T, weights_T, _ = found
        batch = batch.with_streams(marked_T=found.marked_T)
    mini_batches = split_minibatches(batch, training.mini_batches)
    totals = step_totals(batch, updates=len(mini_batches))
    fault, begun = None, optimizer.updates
    for sequences in mini_batches:
        part, rows = batch.take(sequences), sent(batch.rows_of(sequences), weights_T.device)
        most, count = training.micro_batch_tokens, training.micro_batch_sequences
        micro_batches = split_microbatches(part, max_tokens=most, sequences=count)
        groups_T = scope_groups(part, config.selection.scope, micro_batches)
        if not at_once:  # the published variants
            found = choose(policy, part, groups_T, config, meter, step=step)
            entropies_T[rows], weights_T[rows] = found.entropies_T, found.weights_T
            part = part.with_streams(marked_T=found.marked_T)
        part = with_coefficients(part, weights_T[rows], groups_T, config, totals)
        first, every = optimizer.updates == begun, training.check_gradient_every
        how = {"on_policy": first, "checks": bool(first and every and step % every == 0)}
        fault = update(policy, optimizer, part, config, meter, **how) or fault
    if not weights_T.any():  # one mini-batch without a token is no fault, a whole step is
        fault = fault or NOTHING_SELECTED
    return StepResult(
        batch=batch.with_streams(weights_T=weights_T).to("cpu"),
        entropies_T=entropies_T.cpu(),
        metrics=meter.means(),
        fault=fault,
    )
