"""The loss of a micro-batch: coefficients times surrogates, summed, and its penalties."""

from collections.abc import Callable

import torch
from torch import Tensor

from forkpoint.config.stages import LossConfig
from forkpoint.losses.surrogates import (
    LOG_RATIO_BOUND,
    NEEDS_WHOLE_SEQUENCES,
    SURROGATES,
    Surrogate,
)
from forkpoint.types import LossOutput, Metric, TokenBatch, TokenStats

KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k2": lambda difference_R: difference_R.square() / 2,
    "k3": lambda difference_R: difference_R.exp() - difference_R - 1,
}
"""Per token, of KL(policy, frozen reference) with d = ln pi_ref - ln pi, for tokens sampled from pi
(http://joschu.net/blog/kl-approx.html):

    k2 = d^2 / 2            biased value, unbiased gradient of KL(pi, pi_ref)
    k3 = exp(d) - d - 1     unbiased value, >= 0; the field's default
"""


def needed_rows(batch: TokenBatch, config: LossConfig) -> Tensor:
    """The rows the loss reads: bool [T]. Everything else has no part in value or gradient."""
    assert batch.coefficients_T is not None
    needed_T = batch.coefficients_T != 0
    if config.surrogate in NEEDS_WHOLE_SEQUENCES:
        touched_B = torch.zeros(batch.num_sequences, dtype=torch.bool, device=needed_T.device)
        touched_B[batch.sequence_T[needed_T]] = True
        needed_T = touched_B[batch.sequence_T]
    if batch.penalty_coefficients_T is not None:
        needed_T = needed_T | (batch.penalty_coefficients_T != 0)
    return needed_T


def batch_loss(batch: TokenBatch, stats: TokenStats, config: LossConfig) -> LossOutput:
    """One micro-batch's share of the mini-batch's loss.

        loss = - sum_t c_t surrogate_t + sum_t p_t ( beta KL_t - alpha H_t )

    with c and p the batch's coefficients (already divided by their denominators), beta
    ``kl_coefficient`` and alpha ``entropy_bonus``. Shares of any cut add up to the same loss.
    Marked tokens (``loss.marked``) have their own clip bounds and beta, and add
    c_t delta |ln pi - ln pi_old| with delta ``drift_coefficient``.

    Args:
        batch: annotated with ``old_logprobs_T`` and coefficients (and the reference's
            log-probabilities if there is a KL penalty).
        stats: of at least the rows ``needed_rows`` names; more rows change nothing.
    """
    rows_R = stats.rows_R
    assert batch.old_logprobs_T is not None
    assert batch.coefficients_T is not None
    coefficients_R = batch.coefficients_T[rows_R]
    surrogate = _surrogate(batch, stats, config)
    kept_R = coefficients_R != 0
    # where() and not a plain product: 0 * inf of a row that does not count would be nan.
    policy = -torch.where(kept_R, coefficients_R * surrogate.values_R, 0.0).sum()
    loss, shares = policy, {"loss/policy": policy.detach().double()}
    if batch.penalty_coefficients_T is not None:
        penalty, penalty_shares = _penalties(batch, stats, config)
        loss, shares = loss + penalty, shares | penalty_shares
    log_ratio_R = stats.logprobs_R.detach() - batch.old_logprobs_T[rows_R]
    ratio_R = log_ratio_R.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    metrics = {
        "loss/clip_fraction_kept": surrogate.clipped_R & kept_R,
        "loss/ratio_mean_kept": torch.where(kept_R, ratio_R, 0.0),
        "loss/entropy_mean_kept": torch.where(kept_R, stats.entropies_R.detach(), 0.0),
    }
    count = kept_R.sum()
    return LossOutput(
        loss=loss,
        shares=shares,
        metrics={
            name: Metric(values_R.double().sum(), count) for name, values_R in metrics.items()
        },
    )


def _surrogate(batch: TokenBatch, stats: TokenStats, config: LossConfig) -> Surrogate:
    """Each row's surrogate, of marked rows by their own bounds and less what they drift."""
    assert batch.old_logprobs_T is not None
    rows_R, old_R = stats.rows_R, batch.old_logprobs_T[stats.rows_R]
    per_row = (stats.logprobs_R, old_R, batch.advantages_T[rows_R], batch.sequence_T[rows_R])
    function = SURROGATES[config.surrogate]
    plain = function(*per_row, config)
    marked = config.marked
    if marked is None:
        return plain
    assert batch.marked_T is not None
    marked_R = batch.marked_T[rows_R]
    own = {"clip_low": marked.clip_low, "clip_high": marked.clip_high}
    bounds = {name: bound for name, bound in own.items() if bound is not None}
    values_R, clipped_R = function(*per_row, config.model_copy(update=bounds))
    # where() before abs(): a row that is not marked may differ by any amount
    drift_R = torch.where(marked_R, stats.logprobs_R - old_R, 0.0).abs()
    return Surrogate(
        torch.where(marked_R, values_R, plain.values_R) - marked.drift_coefficient * drift_R,
        torch.where(marked_R, clipped_R, plain.clipped_R),
    )


def _penalties(
    batch: TokenBatch, stats: TokenStats, config: LossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    assert batch.penalty_coefficients_T is not None
    coefficients_R = batch.penalty_coefficients_T[stats.rows_R]
    counts_R = coefficients_R != 0
    penalty = torch.zeros((), device=coefficients_R.device)
    shares: dict[str, Tensor] = {}
    if config.entropy_bonus:
        bonus = torch.where(counts_R, coefficients_R * stats.entropies_R, 0.0).sum()
        penalty = penalty - config.entropy_bonus * bonus
        shares["loss/entropy_bonus"] = bonus.detach().double()
    if config.kl_coefficient:
        assert batch.reference_logprobs_T is not None
        difference_R = batch.reference_logprobs_T[stats.rows_R] - stats.logprobs_R
        # The gradient of exp() at a row that does not count would be 0 * inf as well.
        difference_R = torch.where(counts_R, difference_R, 0.0)
        kl_R = KL_ESTIMATORS[config.kl](difference_R)
        weighted_R = torch.where(counts_R, coefficients_R * kl_R, 0.0)
        beta: Tensor | float = config.kl_coefficient
        if config.marked is not None:
            assert batch.marked_T is not None
            marked_R = batch.marked_T[stats.rows_R]
            own = config.marked.kl_coefficient
            if own is not None:
                beta = torch.where(marked_R, own, config.kl_coefficient)
        penalty = penalty + (beta * weighted_R).sum()
        shares["loss/kl"] = weighted_R.sum().detach().double()
    return penalty, shares
