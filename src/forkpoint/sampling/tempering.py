"""Separate decoding temperatures for forks and the rest (paper, Eq. 5).

    p'_t = softmax(z_t / T'_t),   T'_t = above if H_t > threshold else below

H_t is the entropy of softmax(z_t), in nats: whether a position is a fork is asked of the model, not
of the temperature it is decoded at. The inequality is strict.
"""

import torch
from torch import Tensor

from forkpoint.entropy.logits import log_probs
from forkpoint.sampling.base import SplitTemperature


def split_logprobs(logits_RV: Tensor, entropies_R: Tensor, split: SplitTemperature) -> Tensor:
    """ln p' of each row: float32 [R, V] nats.

    Args:
        logits_RV: z, of any float dtype.
        entropies_R: H of softmax(z), nats.
    """
    is_fork_R = entropies_R > split.threshold_nats
    temperatures_R = torch.full_like(entropies_R, split.below).masked_fill(is_fork_R, split.above)
    is_greedy_R = temperatures_R == 0
    divisors_R = temperatures_R.masked_fill(is_greedy_R, 1.0)
    logp_RV = log_probs(logits_RV, divisors_R[:, None])
    if split.above == 0 or split.below == 0:
        logp_RV = torch.where(is_greedy_R[:, None], _greedy_logprobs(logits_RV), logp_RV)
    return logp_RV


def _greedy_logprobs(logits_RV: Tensor) -> Tensor:
    """ln 1 for the first of the largest logits, ln 0 for all others."""
    impossible_RV = torch.full_like(logits_RV, -torch.inf, dtype=torch.float32)
    return impossible_RV.scatter(1, logits_RV.argmax(-1, keepdim=True), 0.0)
