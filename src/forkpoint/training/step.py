"""One step of RLVR on forking tokens: the paper's algorithm on one page.

annotate   log-probabilities and entropies of the policy before the first update
select     the tokens that get a policy gradient, by entropy over the whole step
update     per mini-batch: coefficients once, then loss and gradient a micro-batch at a time
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from forkpoint.batching import split_microbatches, split_minibatches
from forkpoint.config.run import RunConfig
from forkpoint.errors import SelectionError
from forkpoint.losses import policy_loss, with_coefficients
from forkpoint.losses.denominators import step_totals
from forkpoint.losses.policy_loss import needed_rows
from forkpoint.policy.dense import dense_flops
from forkpoint.policy.keys import KeptKeys, SequenceKeys
from forkpoint.policy.module import PolicyModule
from forkpoint.selection import scope_groups, select
from forkpoint.training.bad_steps import NOTHING_SELECTED
from forkpoint.training.optimizer import Optimizer
from forkpoint.types import Metric, Selection, TokenBatch, TokenStats

SAME_NUMBERS_NATS = {"float32": (1e-3, 1e-3), "bfloat16": (0.05, 1.0)}
"""``model.compute_dtype`` -> how far, on average and at most over one sequence, a sampler's
log-probabilities and entropies may be from the policy's to stand in for them. Any two bfloat16
passes of different shapes differ by their rounding: see docs/performance.md."""

SAVINGS = (
    ("work/tokens_saved_fraction", "work/body_tokens", "work/dense_tokens"),
    ("work/flops_saved_fraction", "work/flops", "work/dense_flops"),
)
"""A metric -> 1 - what was run over what the dense way runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step did. Made by ``train_step``; eaten by ``training.loop``."""

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
    kept: KeptKeys | None = None,
) -> StepResult:
    """Up to ``training.mini_batches`` optimizer updates on the rollouts of one step.

    Args:
        batch: from ``build_batch``.
        same_weights: the sampler claims to hold the policy's own weights.
        reference: the frozen model of the KL penalty.
        kept: keys and values from sampling with these weights, for local gradients; those of a
            pass without gradient, where one is made, replace them.

    Raises:
        SelectionError: the pool is empty, or the engine gave a completion without entropies.
        NumericalError: entropies are not finite.
    """
    meter = Meter()
    seen: dict[int, SequenceKeys] | None = {} if config.training.gradient == "local" else None
    batch = annotate(
        policy,
        batch,
        config,
        meter,
        step=step,
        same_weights=same_weights,
        reference=reference,
        keep=seen,
    )
    kept = seen or kept
    weights_T = torch.zeros(batch.num_tokens)
    entropies_T = torch.zeros(batch.num_tokens)
    fault = None
    once = _selected_at_once(config)
    if once:
        entropies_T = _entropies(policy, batch, config, meter)
        groups_T = scope_groups(batch, "batch", [])
        chosen = _select(batch, entropies_T, groups_T, config, step, meter)
        weights_T = chosen.weights_T
    mini_batches = split_minibatches(batch, config.training.mini_batches)
    totals = step_totals(batch, updates=len(mini_batches))
    for index, sequences in enumerate(mini_batches):
        rows = batch.rows_of(sequences)
        part = batch.take(sequences)
        cut = _cut(part, config)
        groups_T = scope_groups(part, config.selection.scope, cut)
        if not once:
            entropies_T[rows] = _entropies(policy, part, config, meter)
            if part.pool_T.any():
                chosen = _select(part, entropies_T[rows], groups_T, config, step, meter)
                weights_T[rows] = chosen.weights_T
        part = with_coefficients(part, weights_T[rows], groups_T, config, totals)
        on_policy = index == 0
        fault = (
            _update(
                policy,
                optimizer,
                part,
                config,
                meter,
                on_policy=on_policy,
                kept=kept if on_policy else None,
            )
            or fault
        )
    if not weights_T.any():  # one mini-batch without a token is no fault, a whole step is
        fault = fault or NOTHING_SELECTED
    return StepResult(
        batch=batch.with_streams(weights_T=weights_T),
        entropies_T=entropies_T,
        metrics=meter.means(),
        fault=fault,
    )


def annotate(
    policy: PolicyModule,
    batch: TokenBatch,
    config: RunConfig,
    meter: "Meter",
    *,
    step: int,
    same_weights: bool,
    reference: PolicyModule | None = None,
    keep: dict[int, SequenceKeys] | None = None,
) -> TokenBatch:
    """The batch with ``old_*`` streams (and the reference's), before the first update.

    The sampler's own log-probabilities serve when it holds the same weights and a look at one
    sequence, another each step, finds its numbers equal to the policy's; else, or when the
    entropies are wanted and the sampler has none, one pass without gradient gets both.

    Args:
        keep: gets the keys and values of that pass, if it is made.
    """
    wants_old = config.selection.entropy == "old" or (
        config.selection.entropy == "auto" and batch.rollout_entropies_T is None
    )
    if wants_old or not (same_weights and _same_numbers(policy, batch, config, meter, step)):
        stats = _look(policy, batch, config, meter, keep)
        batch = batch.with_streams(
            old_logprobs_T=stats.logprobs_R, old_entropies_T=stats.entropies_R
        )
    else:
        batch = batch.with_streams(old_logprobs_T=batch.rollout_logprobs_T)
    if reference is not None:
        stats = _look(reference, batch, config, meter)
        batch = batch.with_streams(reference_logprobs_T=stats.logprobs_R)
    return batch


def _same_numbers(
    policy: PolicyModule, batch: TokenBatch, config: RunConfig, meter: "Meter", step: int
) -> bool:
    """Whether the sampler's numbers are the policy's on one of the batch's sequences."""
    part = batch.take([step % batch.num_sequences])
    stats = _look(policy, part, config, meter)
    gap_T = (stats.logprobs_R - part.rollout_logprobs_T).abs()
    if part.rollout_entropies_T is not None:
        gap_T = torch.maximum(gap_T, (stats.entropies_R - part.rollout_entropies_T).abs())
    mean, largest = float(gap_T.mean()), float(gap_T.max())
    meter.add("mismatch/probe_mean_nats", Metric(mean, 1))
    meter.add("mismatch/probe_max_nats", Metric(largest, 1))
    most_mean, most = SAME_NUMBERS_NATS[config.model.compute_dtype]
    return mean <= most_mean and largest <= most


def _look(
    policy: PolicyModule,
    batch: TokenBatch,
    config: RunConfig,
    meter: "Meter",
    keep: dict[int, SequenceKeys] | None = None,
) -> TokenStats:
    """Every token's statistics without gradient, accounted for."""
    stats = policy.annotate(
        batch,
        max_tokens=config.training.micro_batch_tokens,
        max_sequences=config.training.micro_batch_sequences,
        keep=keep,
    )
    meter.add_sum("work/nograd_tokens", stats.cached_tokens)
    meter.add_sum("work/flops", stats.flops)
    return stats


def _update(
    policy: PolicyModule,
    optimizer: Optimizer,
    part: TokenBatch,
    config: RunConfig,
    meter: "Meter",
    *,
    on_policy: bool,
    kept: KeptKeys | None,
) -> str | None:
    """Gradient of a mini-batch, then one update; why it was skipped, if it was.

    ``on_policy``: no update was made since sampling, so a difference between the sampler's and
    the trainer's log-probabilities is numerical mismatch.
    """
    shares: defaultdict[str, float] = defaultdict(float)
    needed_T = needed_rows(part, config.loss)
    _count_dense_work(policy, part, config, meter)
    for sequences in policy.passes(
        part,
        needed_T,
        max_tokens=config.training.micro_batch_tokens,
        max_sequences=config.training.micro_batch_sequences,
    ):
        micro = part.take(sequences)
        wanted_T = needed_T[part.rows_of(sequences)]
        if not wanted_T.any():
            continue  # a loss of zero with a gradient of zero
        stats = policy(micro, wanted_T, kept=kept)
        output = policy_loss(micro, stats, config.loss)
        if not output.loss.isfinite():
            optimizer.zero_grad()
            return "the loss is not finite"
        output.loss.backward()
        for name, value in output.shares.items():
            shares[name] += value
        for name, metric in output.metrics.items():
            meter.add(name, metric)
        if on_policy:
            meter.add("mismatch/kl", _mismatch(micro, stats.rows_R, stats.logprobs_R))
        meter.add_sum("work/body_tokens", stats.body_tokens)
        meter.add_sum("work/nograd_tokens", stats.cached_tokens)
        meter.add_sum("work/head_rows", len(stats.rows_R))
        meter.add_sum("work/flops", stats.flops)
    if not shares:
        return None  # no token of this mini-batch was selected: nothing to learn from it
    meter.add("optim/lr", Metric(optimizer.lr, 1))
    norm = optimizer.step()
    if not torch.tensor(norm).isfinite():
        return "the gradient is not finite"
    meter.add("grad/norm", Metric(norm, 1))
    for name, value in shares.items():
        meter.add(name, Metric(value, 1))
    return None


def _selected_at_once(config: RunConfig) -> bool:
    """Whether the selection of the whole step is known before its first update."""
    return config.selection.scope == "batch" and config.selection.entropy != "current"


def _entropies(
    policy: PolicyModule, batch: TokenBatch, config: RunConfig, meter: "Meter"
) -> Tensor:
    """The entropies to select by: float32 [T] nats."""
    source = config.selection.entropy
    if source == "current":
        # The selection must be known before the pass with gradient: one more pass without.
        return _look(policy, batch, config, meter).entropies_R
    if source == "auto":
        source = "old" if batch.rollout_entropies_T is None else "rollout"
    entropies_T = batch.old_entropies_T if source == "old" else batch.rollout_entropies_T
    if entropies_T is None:
        raise SelectionError(
            "selection.entropy = 'rollout', but the engine gave a completion without entropies: "
            "use 'old'"
        )
    return entropies_T


def _select(
    batch: TokenBatch,
    entropies_T: Tensor,
    groups_T: Tensor,
    config: RunConfig,
    step: int,
    meter: "Meter",
) -> Selection:
    selection = select(
        batch, entropies_T, groups_T, config.selection, seed=config.training.seed, step=step
    )
    meter.add_sum("selection/pool_tokens", selection.pool_tokens)
    meter.add("selection/kept_fraction", Metric(selection.kept_tokens, selection.pool_tokens))
    known = [t for t in selection.thresholds if t == t]
    meter.add("selection/threshold_nats", Metric(sum(known), len(known)))
    return selection


def _cut(batch: TokenBatch, config: RunConfig) -> list[list[int]]:
    return split_microbatches(
        batch,
        max_tokens=config.training.micro_batch_tokens,
        sequences=config.training.micro_batch_sequences,
    )


def _count_dense_work(
    policy: PolicyModule, part: TokenBatch, config: RunConfig, meter: "Meter"
) -> None:
    """What the dense way would run: every sequence in padded rectangles, every logit."""
    for sequences in _cut(part, config):
        width = max(len(part.prompts_B[b]) + len(part.completions_B[b]) for b in sequences)
        meter.add_sum("work/dense_tokens", len(sequences) * width)
        meter.add_sum("work/dense_flops", 3 * dense_flops(policy.model, len(sequences), width))


def _mismatch(batch: TokenBatch, rows_R: Tensor, logprobs_R: Tensor) -> Metric:
    """KL(sampler, trainer) by k3 over the rows that were run: sum of exp(d) - d - 1."""
    difference_R = (logprobs_R.detach() - batch.rollout_logprobs_T[rows_R]).double()
    return Metric(float((difference_R.exp() - difference_R - 1).sum()), len(rows_R))


class Meter:
    """Adds up the metrics of a step."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def add(self, name: str, metric: Metric) -> None:
        self._metrics[name] = self._metrics.get(name, Metric(0.0, 0)) + metric

    def add_sum(self, name: str, value: float) -> None:
        """A quantity whose total is wanted, not a mean."""
        self._metrics[name] = Metric(self._metrics.get(name, Metric(0.0, 1)).sum + value, 1)

    def means(self) -> dict[str, float]:
        """Every metric's mean, and the shares of the dense way's work that were not done."""
        means = {name: metric.mean for name, metric in self._metrics.items()}
        for saved, run, dense in SAVINGS:
            means[saved] = 1 - means.get(run, 0.0) / means[dense] if means.get(dense) else 0.0
        return means
