"""Entropy and log-probability of logits that are there in full."""

import torch
from torch import Tensor


def logits_stats(
    logits_RV: Tensor, token_ids_R: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """ln p(token), H and E of each row: float32 [R], the first two in nats and differentiable.

    Args:
        logits_RV: of any float dtype; computed in float32. ``-inf`` is a probability of 0.
        temperature: of sampling; logits are divided by it.
    """
    logp_RV = log_probs(logits_RV, temperature)
    logp_R1 = logp_RV.gather(-1, token_ids_R[:, None])
    energies_R = energy_of_probs(logp_RV.detach().exp(), token_ids_R)
    # A sum of one: no view of logp_RV.
    return logp_R1.sum(-1), entropy_of_logprobs(logp_RV), energies_R


def log_probs(logits_RV: Tensor, temperature: float | Tensor) -> Tensor:
    """ln p = z - ln sum_v e^(z_v), z = (logits - their largest) / T: float32 [R, V] in nats.

    Not torch's ``log_softmax``: on a CPU its float32 sum over a wide vocabulary is off by up to
    5e-5 nats, mostly with one sign. That barely moves a probability, but the advantages of a group
    cancel in the gradient, and such a shift does not.

    Args:
        temperature: one for all rows, or [R, 1].
    """
    z_RV = logits_RV.float() / temperature
    z_RV -= z_RV.detach().amax(-1, keepdim=True)
    return z_RV - z_RV.logsumexp(-1, keepdim=True)


def entropy_of_logprobs(logp_RV: Tensor, p_RV: Tensor | None = None) -> Tensor:
    """H = - sum_v p_v ln p_v of each row of log-probabilities: [R] nats, never negative.

    Equal to ``logsumexp(z) - sum p z`` without the cancellation of two large numbers. ``ln 0`` is
    replaced by the lowest finite number, so that its term is 0 and not nan.

    Args:
        p_RV: e^logp, where it is there already.
    """
    p_RV = logp_RV.exp() if p_RV is None else p_RV
    finite_RV = logp_RV.clamp(min=torch.finfo(logp_RV.dtype).min)
    return 0.0 - (p_RV * finite_RV).sum(-1)  # not -0.0 where one word is certain


def energy_of_probs(p_RV: Tensor, token_ids_R: Tensor) -> Tensor:
    """E = || onehot(y) - p ||^2 = (1 - p_y)^2 + sum_{v != y} p_v^2: [R], in [0, 2].

    The squared norm of d ln p_y / dz at the softmax's input z: of the policy gradient of a token
    with an advantage of 1. Overwrites ``p_RV``.
    """
    places_R1 = token_ids_R[:, None]
    missing_R = p_RV.gather(-1, places_R1)[:, 0] - 1
    p_RV.scatter_(-1, places_R1, missing_R[:, None])
    return p_RV.square_().sum(-1)
