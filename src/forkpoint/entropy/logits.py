"""Entropy and log-probability of logits that are there in full."""

import torch
from torch import Tensor


def logits_stats(
    logits_RV: Tensor, token_ids_R: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """ln p(token) and H of each row, both float32 [R] in nats, differentiable.

    Args:
        logits_RV: of any float dtype; computed in float32. ``-inf`` is a probability of 0.
        temperature: of sampling; logits are divided by it.
    """
    logp_RV = (logits_RV.float() / temperature).log_softmax(-1)
    return logp_RV.gather(-1, token_ids_R[:, None])[:, 0], entropy_of_logprobs(logp_RV)


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
