"""What a token's surrogate is divided by: the only place where a loss is normalised.

Computed once over the whole mini-batch, before the first backward. A micro-batch then adds up
``coefficient * surrogate`` and never divides, so the loss is the same however the mini-batch is
cut. With w_t the weight of token t, and N the number of sequences:

    selected              w_t / sum w                     paper v2, Eq. 6; the authors' code
    all                   w_t / sum mask                  paper v1; TRL, ms-swift
    sequence              w_t / (N |o_i|)                 GRPO: mean of each sequence, then of those
    sequence_selected     w_t / (N sum_{t in i} w)        LightRFT: the same over selected tokens
    microbatch_selected   w_t / sum_{t in m} w * N_m / N  the authors' accumulation of micro-batches
    constant              w_t / (N L)                     Dr. GRPO: L = the longest allowed

Sequences masked as truncated count neither in N nor in |o_i|; ``microbatch_selected`` counts them
in N and N_m, as the authors' code does.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from forkpoint.config.run import RunConfig
from forkpoint.types import TokenBatch

Denominator: TypeAlias = Callable[[TokenBatch, Tensor, Tensor, int], Tensor]
"""(mini-batch, weights_T, scope groups_T, longest completion L) -> coefficients_T."""


def selected(batch: TokenBatch, weights_T: Tensor, groups_T: Tensor, length: int) -> Tensor:
    return _divide(weights_T, weights_T.sum())


def all_tokens(batch: TokenBatch, weights_T: Tensor, groups_T: Tensor, length: int) -> Tensor:
    return _divide(weights_T, batch.mask_T.sum())


def sequence(batch: TokenBatch, weights_T: Tensor, groups_T: Tensor, length: int) -> Tensor:
    length_B = _sum_by(batch.sequence_T, batch.mask_T.double(), batch.num_sequences)
    return _divide(weights_T, (_num_counted(batch) * length_B)[batch.sequence_T])


def sequence_selected(
    batch: TokenBatch, weights_T: Tensor, groups_T: Tensor, length: int
) -> Tensor:
    total_B = _sum_by(batch.sequence_T, weights_T, batch.num_sequences)
    return _divide(weights_T, (_num_counted(batch) * total_B)[batch.sequence_T])


def microbatch_selected(
    batch: TokenBatch, weights_T: Tensor, groups_T: Tensor, length: int
) -> Tensor:
    num_groups = int(groups_T.max()) + 1 if len(groups_T) else 0
    total_M = _sum_by(groups_T, weights_T, num_groups)
    first_T = batch.position_T == 0
    sequences_M = _sum_by(groups_T, first_T.double(), num_groups)
    share_M = sequences_M / batch.num_sequences
    return _divide(weights_T, (total_M / share_M)[groups_T])


def constant(batch: TokenBatch, weights_T: Tensor, groups_T: Tensor, length: int) -> Tensor:
    return _divide(weights_T, torch.tensor(_num_counted(batch) * length))


DENOMINATORS: dict[str, Denominator] = {
    "selected": selected,
    "all": all_tokens,
    "sequence": sequence,
    "sequence_selected": sequence_selected,
    "microbatch_selected": microbatch_selected,
    "constant": constant,
}


def with_coefficients(
    batch: TokenBatch, weights_T: Tensor, groups_T: Tensor, config: RunConfig
) -> TokenBatch:
    """The mini-batch with ``weights_T``, ``coefficients_T`` and ``penalty_coefficients_T`` set.

    Penalties (KL, entropy bonus) go with the selected tokens and their coefficients, or with
    ``penalties_on = "all"`` are a mean over every token of the mask.
    """
    loss = config.loss
    length = loss.constant_tokens or config.rollout.max_new_tokens
    coefficients_T = DENOMINATORS[loss.denominator](batch, weights_T, groups_T, length)
    penalties_T = None
    if loss.kl_coefficient or loss.entropy_bonus:
        mean_T = _divide(batch.mask_T.float(), batch.mask_T.sum())  # 0 where all is masked
        penalties_T = coefficients_T if loss.penalties_on == "selected" else mean_T
    return batch.with_streams(
        weights_T=weights_T,
        coefficients_T=coefficients_T,
        penalty_coefficients_T=penalties_T,
    )


def _divide(weights_T: Tensor, denominator: Tensor) -> Tensor:
    """weights / denominator in float64, rounded once; 0 where the weight is 0."""
    quotient_T = weights_T.double() / denominator
    return torch.where(weights_T > 0, quotient_T, 0.0).float()


def _sum_by(index_T: Tensor, values_T: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64).index_add(0, index_T, values_T.double())


def _num_counted(batch: TokenBatch) -> int:
    return len(batch.sequence_T[batch.mask_T].unique())
