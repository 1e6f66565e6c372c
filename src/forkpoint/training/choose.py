"""Which tokens of a batch get a policy gradient, and by which entropies."""

from typing import NamedTuple

import torch
from torch import Tensor

from forkpoint.config.run import RunConfig
from forkpoint.errors import SelectionError
from forkpoint.policy.module import PolicyModule
from forkpoint.selection import select
from forkpoint.selection.rules import marking
from forkpoint.training.annotate import all_tokens, source_of
from forkpoint.training.meter import Meter
from forkpoint.types import Metric, TokenBatch


def chosen_at_once(config: RunConfig) -> bool:
    """Whether the selection of the whole step is known before its first update."""
    return config.selection.scope == "batch" and config.selection.entropy != "current"


class Choice(NamedTuple):
    """What ``choose`` finds for the T tokens of a batch."""

    entropies_T: Tensor
    """float32 [T] nats, those that selected."""
    weights_T: Tensor
    """float32 [T] >= 0, the selection."""
    marked_T: Tensor | None = None
    """bool [T], the tokens of ``loss.marked``."""


def choose(
    policy: PolicyModule,
    batch: TokenBatch,
    groups_T: Tensor,
    config: RunConfig,
    meter: Meter,
    *,
    step: int,
) -> Choice:
    """The selection of a batch, and the entropies it was made by.

    The share of the energy A^2 E that lies in selected tokens is measured where it is known.

    Args:
        groups_T: int64 [T]; tokens compete within equal numbers.

    Raises:
        SelectionError: the pool of a whole step is empty, or the engine gave a completion without
            entropies.
        NumericalError: entropies are not finite.
    """
    source = source_of(batch, config)
    if source == "current":
        # The selection must be known before the pass with gradient: one more pass without.
        stats = all_tokens(policy, batch, config)
        known_T = (stats.entropies_R, stats.logprobs_R, stats.energies_R)
    elif source == "old":
        known_T = (batch.old_entropies_T, batch.old_logprobs_T, batch.old_energies_T)
    else:
        known_T = (batch.rollout_entropies_T, batch.rollout_logprobs_T, batch.rollout_energies_T)
    entropies_T, logprobs_T, energies_T = known_T
    if entropies_T is None:
        raise SelectionError(
            "selection.entropy = 'rollout', but the engine gave a completion without entropies: "
            "use 'old'"
        )
    if not chosen_at_once(config) and not batch.pool_T.any():
        nothing_T = torch.zeros_like(entropies_T)  # a mini-batch may have no pool
        return Choice(entropies_T, nothing_T, nothing_T > 0)
    seed = config.training.seed
    if energies_T is not None:
        energies_T = batch.advantages_T.square() * energies_T
    given = {"seed": seed, "step": step, "logprobs_T": logprobs_T, "energies_T": energies_T}
    chosen = select(batch, entropies_T, groups_T, config.selection, **given)
    if energies_T is not None:
        counted_T = torch.where(batch.mask_T, energies_T.double(), 0.0)
        inside = torch.where(chosen.weights_T > 0, counted_T, 0.0).sum()
        meter.add("selection/energy_share", Metric(inside, counted_T.sum()))
    meter.totals["selection/pool_tokens"] += chosen.pool_tokens
    meter.add("selection/kept_fraction", Metric(chosen.kept_tokens, chosen.pool_tokens))
    known = [nats for nats in chosen.thresholds if nats == nats]  # not nan
    meter.add("selection/threshold_nats", Metric(sum(known), len(known)))
    marked, marked_T = config.loss.marked, None
    if marked is not None:
        whole_T = torch.zeros_like(groups_T)
        groups_T = batch.sequence_T if marked.scope == "sequence" else whole_T
        marks = select(batch, entropies_T, groups_T, marking(marked), **given, draws="marking rule")
        marked_T = marks.weights_T > 0
    return Choice(entropies_T, chosen.weights_T, marked_T)
