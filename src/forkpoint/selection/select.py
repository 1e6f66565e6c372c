"""A rule, applied to each scope group of a batch on its own."""

import torch
from torch import Tensor

from forkpoint.config.stages import SelectionConfig
from forkpoint.dotted import call_users, resolve
from forkpoint.errors import NumericalError, SelectionError
from forkpoint.selection.rules import RULES, Candidates, Rule
from forkpoint.types import Selection, TokenBatch


def select(
    batch: TokenBatch,
    entropies_T: Tensor,
    groups_T: Tensor,
    config: SelectionConfig,
    *,
    seed: int,
    step: int,
) -> Selection:
    """Weights of a batch's tokens.

    Args:
        entropies_T: float32 [T] nats, of the source the method names.
        groups_T: int64 [T] from ``scope_groups``; tokens compete within equal numbers.
        seed, step: for rules that draw.

    Raises:
        NumericalError: an entropy of the pool is not finite.
        SelectionError: the pool is empty, or a custom rule returned something else than one
            weight >= 0 per candidate.
        UserCodeError: a custom rule raised.
    """
    pool = batch.pool_T.nonzero().flatten()
    if not len(pool):
        raise SelectionError(
            "no token to select from: every completion of the step has zero advantage or was "
            "masked as truncated"
        )
    if not entropies_T[pool].isfinite().all():
        raise NumericalError("the entropies to select by are not finite")
    rule = RULES.get(config.rule) or resolve(config.rule, key="selection.rule")
    weights_T = torch.zeros(batch.num_tokens)
    thresholds = []
    for group in groups_T[pool].unique():
        rows = pool[groups_T[pool] == group]
        candidates = _candidates(batch, entropies_T, rows, config, seed, step)
        weights = _checked(rule, candidates, config.rule)
        weights_T[rows] = weights
        kept = entropies_T[rows][weights > 0]
        thresholds.append(float(kept.min()) if len(kept) else float("nan"))
    weights_T = torch.where(batch.mask_T, weights_T, 0.0)  # the masked only compete
    return Selection(
        weights_T=weights_T,
        thresholds=tuple(thresholds),
        pool_tokens=len(pool),
        kept_tokens=int((weights_T > 0).sum()),
    )


def scope_groups(batch: TokenBatch, scope: str, microbatches: list[list[int]]) -> Tensor:
    """The scope group of each token: int64 [T].

    ``batch`` and ``minibatch`` make one group of all that is passed in; ``sequence`` one per
    sequence; ``microbatch`` one per part of ``microbatches`` (lists of sequence indices).
    """
    if scope == "sequence":
        return batch.sequence_T
    part_B = torch.zeros(batch.num_sequences, dtype=torch.int64)
    if scope == "microbatch":
        for part, sequences in enumerate(microbatches):
            part_B[sequences] = part
    return part_B[batch.sequence_T]


def _candidates(
    batch: TokenBatch,
    entropies_T: Tensor,
    rows: Tensor,
    config: SelectionConfig,
    seed: int,
    step: int,
) -> Candidates:
    return Candidates(
        entropies_N=entropies_T[rows],
        sequence_ids_N=batch.sequence_ids_B[batch.sequence_T[rows]],
        positions_N=batch.position_T[rows],
        advantages_N=batch.advantages_T[rows],
        logprobs_N=batch.rollout_logprobs_T[rows],
        keep_fraction=config.keep_fraction,
        rounding=config.rounding,
        ties=config.ties,
        threshold_nats=config.threshold_nats,
        seed=seed,
        step=step,
    )


def _checked(rule: Rule, candidates: Candidates, name: str) -> Tensor:
    """What the rule says, if it is one finite weight >= 0 per candidate."""
    n = len(candidates.entropies_N)
    given = call_users(rule, candidates, setting=f"selection.rule = {name!r}")
    try:
        weights_N = torch.as_tensor(given, dtype=torch.float32, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        raise _refused(rule, n, f"a {type(given).__name__}") from None
    if weights_N.shape != (n,):
        raise _refused(rule, n, f"a tensor of shape {tuple(weights_N.shape)}")
    bad = ~weights_N.isfinite() | (weights_N < 0)
    if bad.any():
        raise _refused(rule, n, f"the weight {weights_N[bad][0].item()}")
    return weights_N


def _refused(rule: Rule, n: int, returned: str) -> SelectionError:
    name = getattr(rule, "__name__", repr(rule))
    return SelectionError(
        f"the rule {name} must return {n} finite weights >= 0, one per candidate; it returned "
        f"{returned}"
    )
