"""What is known of every token before the first update: log-probabilities, entropies."""

import torch

from forkpoint.config.run import RunConfig
from forkpoint.losses.surrogates import LOG_RATIO_BOUND
from forkpoint.policy.checks import SAME_NUMBERS_NATS
from forkpoint.policy.module import PolicyModule
from forkpoint.selection.names import BY_ENERGY, rules_in
from forkpoint.training.meter import Meter
from forkpoint.types import Metric, TokenBatch, TokenStats


def annotate(
    policy: PolicyModule,
    batch: TokenBatch,
    config: RunConfig,
    meter: Meter,
    *,
    step: int,
    same_weights: bool,
    reference: PolicyModule | None = None,
) -> TokenBatch:
    """The batch with ``old_*`` streams (and the reference's), before the first update.

    The sampler's own log-probabilities serve when it holds the same weights and its numbers for
    one sequence, another each step, come out equal to the policy's; else, or when the entropies
    are wanted and the sampler has none, one pass without gradient gets both.
    """
    if source_of(batch, config) == "old" or not (
        same_weights and _same_numbers(policy, batch, config, meter, step)
    ):
        stats = all_tokens(policy, batch, config, keep_keys=True)
        batch = batch.with_streams(
            old_logprobs_T=stats.logprobs_R,
            old_entropies_T=stats.entropies_R,
            old_energies_T=stats.energies_R,
        )
    else:
        batch = batch.with_streams(old_logprobs_T=batch.rollout_logprobs_T)
    if not same_weights and (cap := config.loss.importance_cap) != "none":
        batch = batch.with_streams(importance_T=_importance(batch, cap, meter))
    if reference is not None:
        stats = all_tokens(reference, batch, config)
        batch = batch.with_streams(reference_logprobs_T=stats.logprobs_R)
    return batch


def source_of(batch: TokenBatch, config: RunConfig) -> str:
    """``rollout``, ``old`` or ``current``: what ``auto`` comes to.

    That is the sampler's numbers, if it gave those that the rule reads.
    """
    source = config.selection.entropy
    if source != "auto":
        return source
    rules = rules_in(config.selection.rule)
    if config.loss.marked is not None:
        rules += rules_in(config.loss.marked.rule)
    by_energy = not BY_ENERGY.isdisjoint(rules)
    known = batch.rollout_energies_T if by_energy else batch.rollout_entropies_T
    return "old" if known is None or batch.rollout_entropies_T is None else "rollout"


def _importance(batch: TokenBatch, cap: float, meter: Meter) -> torch.Tensor:
    """min(pi_old / pi_sampler, cap) of each token; 1 where the sampler's probability is unknown."""
    assert batch.old_logprobs_T is not None
    difference_T = (batch.old_logprobs_T - batch.rollout_logprobs_T).nan_to_num(nan=0.0)
    importance_T = difference_T.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    capped_T = importance_T > cap
    counted_T = batch.mask_T
    meter.add("mismatch/importance_mean", Metric(importance_T[counted_T].sum(), counted_T.sum()))
    meter.add("mismatch/truncated_share", Metric((capped_T & counted_T).sum(), counted_T.sum()))
    return importance_T.clamp(max=cap)


def _same_numbers(
    policy: PolicyModule, batch: TokenBatch, config: RunConfig, meter: Meter, step: int
) -> bool:
    """Whether the sampler's numbers are the policy's on one of the batch's sequences."""
    part = batch.take([step % batch.num_sequences])
    stats = all_tokens(policy, part, config)
    gap_T = (stats.logprobs_R - part.rollout_logprobs_T).abs()
    if part.rollout_entropies_T is not None:
        gap_T = torch.maximum(gap_T, (stats.entropies_R - part.rollout_entropies_T).abs())
    mean, largest = float(gap_T.mean()), float(gap_T.max())
    meter.add("mismatch/probe_mean_nats", Metric(mean, 1))
    meter.add("mismatch/probe_max_nats", Metric(largest, 1))
    most_mean, most = SAME_NUMBERS_NATS[config.model.compute_dtype]
    if part.rollout_energies_T is not None:
        largest = max(largest, float((stats.energies_R - part.rollout_energies_T).abs().max()))
    return mean <= most_mean and largest <= most


def all_tokens(
    policy: PolicyModule, batch: TokenBatch, config: RunConfig, *, keep_keys: bool = False
) -> TokenStats:
    """Every token's statistics without gradient."""
    return policy.annotate(
        batch,
        max_tokens=config.training.micro_batch_tokens,
        max_sequences=config.training.micro_batch_sequences,
        keep_keys=keep_keys,
    )
