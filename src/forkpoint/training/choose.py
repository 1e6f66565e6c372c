"""Which tokens of a batch get a policy gradient, and by which entropies."""

import torch
from torch import Tensor

from forkpoint.config.run import RunConfig
from forkpoint.errors import SelectionError
from forkpoint.policy.module import PolicyModule
from forkpoint.selection import select
from forkpoint.training.annotate import all_tokens
from forkpoint.training.meter import Meter
from forkpoint.types import Metric, TokenBatch


def chosen_at_once(config: RunConfig) -> bool:
    """Whether the selection of the whole step is known before its first update."""
    return config.selection.scope == "batch" and config.selection.entropy != "current"


def choose(
    policy: PolicyModule,
    batch: TokenBatch,
    groups_T: Tensor,
    config: RunConfig,
    meter: Meter,
    *,
    step: int,
) -> tuple[Tensor, Tensor]:
    """The entropies to select by, float32 [T] nats, and the weights of the selection, float32 [T].

    Args:
        groups_T: int64 [T]; tokens compete within equal numbers.

    Raises:
        SelectionError: the pool of a whole step is empty, or the engine gave a completion without
            entropies.
        NumericalError: entropies are not finite.
    """
    source = config.selection.entropy
    if source == "auto":
        source = "old" if batch.rollout_entropies_T is None else "rollout"
    if source == "current":
        # The selection must be known before the pass with gradient: one more pass without.
        entropies_T = all_tokens(policy, batch, config).entropies_R
    else:
        entropies_T = batch.old_entropies_T if source == "old" else batch.rollout_entropies_T
    if entropies_T is None:
        raise SelectionError(
            "selection.entropy = 'rollout', but the engine gave a completion without entropies: "
            "use 'old'"
        )
    if not chosen_at_once(config) and not batch.pool_T.any():
        return entropies_T, torch.zeros_like(entropies_T)  # a mini-batch may have no pool
    seed = config.training.seed
    chosen = select(batch, entropies_T, groups_T, config.selection, seed=seed, step=step)
    meter.totals["selection/pool_tokens"] += chosen.pool_tokens
    meter.add("selection/kept_fraction", Metric(chosen.kept_tokens, chosen.pool_tokens))
    known = [nats for nats in chosen.thresholds if nats == nats]  # not nan
    meter.add("selection/threshold_nats", Metric(sum(known), len(known)))
    return entropies_T, chosen.weights_T
