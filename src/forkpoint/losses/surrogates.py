"""Surrogates: what is maximised per token, before any weight or mean.

With r = pi(o_t) / pi_old(o_t) and A the advantage:

    ppo_clip    min( r A, clip(r, 1 - low, 1 + high) A )                    (DAPO: low != high)
                and with dual clip c, where A < 0: max( that, c A )
    reinforce   A ln pi
    gspo        ppo_clip with r of the whole sequence, s = exp( mean_t ln r_t ), whose gradient goes
                through the token's own ln pi only (GSPO-token, 2507.18071, Eq. 13-14)
    cispo       sg[ clip(r, 1 - low, 1 + high) ] A ln pi                    (2506.13585)

ln r is held within +-20, as in verl: a ratio of 5e8 is a fault, not a measurement, and its
exponential must not overflow.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from forkpoint.config.stages import LossConfig

LOG_RATIO_BOUND = 20.0


class Surrogate(NamedTuple):
    """What a surrogate function returns for R rows."""

    values_R: Tensor
    """[R], with gradient; to be maximised."""
    clipped_R: Tensor
    """bool [R], where the clip took the gradient away (cispo: where it changed the weight)."""


def ppo_clip(
    logprobs_R: Tensor, old_R: Tensor, advantages_R: Tensor, sequence_R: Tensor, config: LossConfig
) -> Surrogate:
    return _clip(_ratio(logprobs_R - old_R), advantages_R, config)


def reinforce(
    logprobs_R: Tensor, old_R: Tensor, advantages_R: Tensor, sequence_R: Tensor, config: LossConfig
) -> Surrogate:
    return Surrogate(advantages_R * logprobs_R, torch.zeros_like(advantages_R, dtype=torch.bool))


def gspo(
    logprobs_R: Tensor, old_R: Tensor, advantages_R: Tensor, sequence_R: Tensor, config: LossConfig
) -> Surrogate:
    """Needs every token of a sequence among the rows: see ``NEEDS_WHOLE_SEQUENCES``."""
    _, index_R, count_S = sequence_R.unique(return_inverse=True, return_counts=True)
    log_ratio_R = (logprobs_R - old_R).detach()
    sum_S = torch.zeros(len(count_S), device=index_R.device).index_add(0, index_R, log_ratio_R)
    sequence_log_ratio_R = (sum_S / count_S)[index_R]
    own_R = logprobs_R - logprobs_R.detach()  # 0, with the token's gradient
    return _clip(_ratio(sequence_log_ratio_R + own_R), advantages_R, config)


def cispo(
    logprobs_R: Tensor, old_R: Tensor, advantages_R: Tensor, sequence_R: Tensor, config: LossConfig
) -> Surrogate:
    ratio_R = _ratio(logprobs_R - old_R).detach()
    weight_R = ratio_R.clamp(1 - config.clip_low, 1 + config.clip_high)
    return Surrogate(weight_R * advantages_R * logprobs_R, weight_R != ratio_R)


SURROGATES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, LossConfig], Surrogate]] = {
    "ppo_clip": ppo_clip,
    "reinforce": reinforce,
    "gspo": gspo,
    "cispo": cispo,
}
"""(logprobs_R, old_logprobs_R, advantages_R, sequence_R, config) -> Surrogate."""

NEEDS_WHOLE_SEQUENCES = frozenset({"gspo"})
"""Surrogates of a selected token that read every token of its sequence."""


def _ratio(log_ratio_R: Tensor) -> Tensor:
    return log_ratio_R.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def _clip(ratio_R: Tensor, advantages_R: Tensor, config: LossConfig) -> Surrogate:
    free_R = ratio_R * advantages_R
    clipped_R = ratio_R.clamp(1 - config.clip_low, 1 + config.clip_high) * advantages_R
    values_R = torch.minimum(free_R, clipped_R)
    bound_R = clipped_R < free_R
    if config.dual_clip is not None:
        floor_R = config.dual_clip * advantages_R
        low_R = (advantages_R < 0) & (values_R < floor_R)
        values_R, bound_R = torch.where(low_R, floor_R, values_R), bound_R | low_R
    return Surrogate(values_R, bound_R)
