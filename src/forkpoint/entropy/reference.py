"""The definition, written down as plainly as it can be: the oracle of every faster way.

    H = - sum_v p_v ln p_v,   p = softmax(z / T),   in nats

over the whole vocabulary, with T the sampling temperature (paper, Eq. 1).
"""

import torch
from torch import Tensor


def reference_entropy(logits_RV: Tensor, temperature: float = 1.0) -> Tensor:
    """H of each row in float64: [R] nats. A probability of 0 adds 0."""
    p_RV = torch.softmax(logits_RV.double() / temperature, dim=-1)
    return torch.special.entr(p_RV).sum(-1)


def reference_energy(logits_RV: Tensor, token_ids_R: Tensor, temperature: float = 1.0) -> Tensor:
    """E = || onehot(y) - p ||^2 of each row's token in float64: [R]."""
    p_RV = torch.softmax(logits_RV.double() / temperature, dim=-1)
    onehot_RV = torch.nn.functional.one_hot(token_ids_R, p_RV.shape[-1])
    return (onehot_RV - p_RV).square().sum(-1)


def reference_logprob(logits_RV: Tensor, token_ids_R: Tensor, temperature: float = 1.0) -> Tensor:
    """ln p of each row's token in float64: [R] nats."""
    logp_RV = torch.log_softmax(logits_RV.double() / temperature, dim=-1)
    return logp_RV.gather(-1, token_ids_R[:, None])[:, 0]
