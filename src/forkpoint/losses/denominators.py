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


Denominator: TypeAlias = Callable[[TokenBatch, Tensor, Measures], Tensor]
"""(mini-batch, weights_T, measures) -> coefficients_T."""


def selected(batch: TokenBatch, weights_T: Tensor, measures: Measures) -> Tensor:
    return _divide(weights_T, weights_T.sum())


def all_tokens(batch: TokenBatch, weights_T: Tensor, measures: Measures) -> Tensor:
    return _divide(weights_T, batch.mask_T.sum())


def all_per_update(batch: TokenBatch, weights_T: Tensor, measures: Measures) -> Tensor:
    return _divide(weights_T, measures.step.mask_tokens / measures.step.updates)


def sampled_of_step(batch: TokenBatch, weights_T: Tensor, measures: Measures) -> Tensor:
    return _divide(weights_T, measures.step.sampled_tokens)


def sequence(batch: TokenBatch, weights_T: Tensor, measures: Measures) -> Tensor:
    length_B = _sum_by(batch.sequence_T, batch.mask_T.double(), batch.num_sequences)
    return _divide(weights_T, (batch.num_sequences * length_B)[batch.sequence_T])


def sequence_selected(batch: TokenBatch, weights_T: Tensor, measures: Measures) -> Tensor:
    total_B = _sum_by(batch.sequence_T, weights_T, batch.num_sequences)
    return _divide(weights_T, (batch.num_sequences * total_B)[batch.sequence_T])


def microbatch_selected(batch: TokenBatch, weights_T: Tensor, measures: Measures) -> Tensor:
    groups_T = measures.groups_T
    num_groups = int(groups_T.max()) + 1 if len(groups_T) else 0
    total_M = _sum_by(groups_T, weights_T, num_groups)
    first_T = batch.position_T == 0
    sequences_M = _sum_by(groups_T, first_T.double(), num_groups)
    share_M = sequences_M / batch.num_sequences
    return _divide(weights_T, (total_M / share_M)[groups_T])


def constant(batch: TokenBatch, weights_T: Tensor, measures: Measures) -> Tensor:
    return _divide(weights_T, batch.num_sequences * measures.longest)


DENOMINATORS: dict[str, Denominator] = {
    "selected": selected,
    "all": all_tokens,
    "all_per_update": all_per_update,
    "sampled_of_step": sampled_of_step,
    "sequence": sequence,
    "sequence_selected": sequence_selected,
    "microbatch_selected": microbatch_selected,
    "constant": constant,
}


def step_totals(batch: TokenBatch, updates: int) -> StepTotals:
    """Of a whole step that is trained on in so many updates."""
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
    coefficients_T = denominator(batch, weights_T, measures)
    penalties_T = None
    if loss.kl_coefficient or loss.entropy_bonus:
        penalties_T = coefficients_T
        if loss.penalties_on == "all":
            penalties_T = denominator(batch, batch.mask_T.float(), measures)
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
