"""What a token's surrogate is divided by: the only place where a loss is normalised.

Computed once over the whole mini-batch, before the first backward. A micro-batch then adds up
``coefficient * surrogate`` and never divides, so the loss is the same however the mini-batch is
cut. With w_t the weight of token t, mask the tokens that are not of a completion masked as
truncated, and N the number of sequences:

    selected              w_t / sum w                     paper v2, Eq. 6; the authors' code
    all                   w_t / sum mask                  paper v1
    all_per_update        w_t / (M / U)                   TRL's dapo: M = sum mask of the whole
                                                          step, U = its number of updates
    sampled_of_step       w_t / S                         ms-swift's dapo: S = every token sampled
                                                          for the step, truncated or not
    sequence              w_t / (N sum_{t in i} mask)     GRPO: mean of each sequence, then of those
    sequence_selected     w_t / (N sum_{t in i} w)        LightRFT: the same over selected tokens
    microbatch_selected   w_t / sum_{t in m} w * N_m / N  the authors' accumulation of micro-batches
    constant              w_t / (N L)                     Dr. GRPO: L = the longest allowed

A sequence masked as truncated is one of the N, with a loss of 0, as in TRL, ms-swift and the
authors' code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from forkpoint.config.run import RunConfig
from forkpoint.types import TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTotals:
    """What a denominator may need to know of the whole step. Made by ``step_totals``."""

    mask_tokens: int
    sampled_tokens: int
    updates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What denominators need besides a mini-batch and its weights."""

    groups_T: Tensor
    """int64 [T], scope groups."""
    longest: int
    """L, tokens."""
    step: StepTotals


Denominator: TypeAlias = Callable[[TokenBatch, Tensor, Measures], Tensor | float]
"""(mini-batch, weights_T, measures) -> what each token's weight is divided by."""


def _sequence(batch: TokenBatch, counted_T: Tensor) -> Tensor:
    """The number of sequences times what is counted of a token's own sequence."""
    total_B = _sum_by(batch.sequence_T, counted_T, batch.num_sequences)
    return (batch.num_sequences * total_B)[batch.sequence_T]


def _microbatch_selected(batch: TokenBatch, weights_T: Tensor, measures: Measures) -> Tensor:
    groups_T = measures.groups_T
    num_groups = int(groups_T.max()) + 1 if len(groups_T) else 0
    total_M = _sum_by(groups_T, weights_T, num_groups)
    sequences_M = _sum_by(groups_T, (batch.position_T == 0).double(), num_groups)
    return (total_M / (sequences_M / batch.num_sequences))[groups_T]


DENOMINATORS: dict[str, Denominator] = {
    "selected": lambda batch, weights_T, measures: weights_T.sum(),
    "all": lambda batch, weights_T, measures: batch.mask_T.sum(),
    "all_per_update": lambda batch, weights_T, measures: (
        measures.step.mask_tokens / measures.step.updates
    ),
    "sampled_of_step": lambda batch, weights_T, measures: measures.step.sampled_tokens,
    "sequence": lambda batch, weights_T, measures: _sequence(batch, batch.mask_T.double()),
    "sequence_selected": lambda batch, weights_T, measures: _sequence(batch, weights_T),
    "microbatch_selected": _microbatch_selected,
    "constant": lambda batch, weights_T, measures: batch.num_sequences * measures.longest,
}


def step_totals(batch: TokenBatch, updates: int) -> StepTotals:
    """What is counted of a whole step that is trained on in so many updates."""
    return StepTotals(
        mask_tokens=int(batch.mask_T.sum()), sampled_tokens=batch.num_tokens, updates=updates
    )


def with_coefficients(
    batch: TokenBatch,
    weights_T: Tensor,
    groups_T: Tensor,
    config: RunConfig,
    step: StepTotals | None = None,
) -> TokenBatch:
    """The mini-batch with ``weights_T``, ``coefficients_T`` and ``penalty_coefficients_T`` set.

    A surrogate's coefficient is w_t / denominator, times ``importance_T`` where the batch has it:
    the importance weight takes no part in the denominator.

    Penalties (KL, entropy bonus) go with the selected tokens and their coefficients, or with
    ``penalties_on = "all"`` have the coefficients that every token of the mask would get if all of
    them were selected.

    Args:
        groups_T: int64 [T], the scope groups the tokens were selected in.
        step: of the step that the mini-batch belongs to; None: the mini-batch is the whole step.
    """
    loss = config.loss
    denominator = DENOMINATORS[loss.denominator]
    measures = Measures(
        groups_T=groups_T,
        longest=loss.constant_tokens or config.rollout.max_new_tokens,
        step=step or step_totals(batch, updates=1),
    )
    coefficients_T = _divide(weights_T, denominator(batch, weights_T, measures))
    penalties_T = None
    if loss.kl_coefficient or loss.entropy_bonus:
        penalties_T = coefficients_T
        if loss.penalties_on == "all":
            every_T = batch.mask_T.float()
            penalties_T = _divide(every_T, denominator(batch, every_T, measures))
    if batch.importance_T is not None:
        coefficients_T = coefficients_T * batch.importance_T
    return batch.with_streams(
        weights_T=weights_T,
        coefficients_T=coefficients_T,
        penalty_coefficients_T=penalties_T,
    )


def _divide(weights_T: Tensor, denominator: Tensor | float) -> Tensor:
    """weights / denominator in float64, rounded once; 0 where the weight is 0."""
    quotient_T = weights_T.double() / denominator
    return torch.where(weights_T > 0, quotient_T, 0.0).float()


def _sum_by(index_T: Tensor, values_T: Tensor, size: int) -> Tensor:
    zeros = torch.zeros(size, dtype=torch.float64, device=index_T.device)
    return zeros.index_add(0, index_T, values_T.double())
