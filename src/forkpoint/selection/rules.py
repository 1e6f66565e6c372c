"""The rules: from the tokens that compete to a weight for each.

A rule is any callable ``rule(candidates) -> weights_N`` where a weight of 0 means no policy
gradient. The rules here return 0 or 1. A rule of yours is named by its dotted path in
``selection.rule``; see ``examples/custom_rule.py``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from forkpoint.randomness import stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The N pool tokens of one scope group, and what a rule may decide by.

    Their order carries no meaning: a rule must give each token the same weight whatever the order,
    which is what makes a selection independent of how the batch was cut. The tensors lie where the
    step is computed, and the weights belong there, too.
    """

    entropies_N: Tensor
    """float32 [N] nats."""
    sequence_ids_N: Tensor
    """int64 [N], unique per sequence of the step."""
    positions_N: Tensor
    """int64 [N], within the completion."""
    advantages_N: Tensor
    """float32 [N]."""
    logprobs_N: Tensor
    """float32 [N], of the sampler."""
    keep_fraction: float
    rounding: str = "ceil"
    ties: str = "order"
    threshold_nats: float | None = None
    seed: int = 0
    step: int = 0

    @property
    def num_kept(self) -> int:
        """k = ceil(keep_fraction * N), or max(1, floor(..)); 0 of 0.

        The product is taken of the decimal fraction that was written: in binary, 0.07 * 100 is
        a little more than 7, and its ceiling would be 8.
        """
        n = len(self.entropies_N)
        exact = Fraction(str(self.keep_fraction)) * n
        return math.ceil(exact) if self.rounding == "ceil" else min(n, max(1, math.floor(exact)))


Rule: TypeAlias = Callable[[Candidates], Tensor]


def top(candidates: Candidates) -> Tensor:
    """The forks: tokens of highest entropy.

    ``ties`` decides at the edge: ``order`` keeps exactly k by (entropy, sequence id, position);
    ``keep`` keeps H >= the k-th value; ``quantile`` keeps H >= the linearly interpolated
    (1 - keep_fraction) quantile.
    """
    if candidates.ties == "order":
        return _exactly_k(candidates, candidates.entropies_N)
    if candidates.ties == "keep":
        ranked_N = torch.sort(candidates.entropies_N, descending=True).values
        edge = ranked_N[candidates.num_kept - 1]
    else:
        edge = linear_quantile(candidates.entropies_N, 1 - candidates.keep_fraction)
    return (candidates.entropies_N >= edge).float()


def bottom(candidates: Candidates) -> Tensor:
    """The control: every token that ``top`` with a fraction of 1 - keep_fraction leaves.

    The two never share a token and together are everything, whatever ``ties`` and ``rounding`` say.
    So with rounding up it is the bottom that gets one token less (none of a single one).
    """
    rest = 1 - Fraction(str(candidates.keep_fraction))
    if rest == 0:
        return everything(candidates)
    return 1 - top(replace(candidates, keep_fraction=float(rest)))


def random(candidates: Candidates) -> Tensor:
    """The other control: k tokens drawn evenly, each by (seed, step, sequence id, position)."""
    ids_N, positions_N = (
        candidates.sequence_ids_N.cpu().numpy(),
        candidates.positions_N.cpu().numpy(),
    )
    order_N = ids_N.argsort(kind="stable")
    ids, starts = np.unique(ids_N[order_N], return_index=True)
    scores_N = np.empty(len(ids_N))
    for sequence, here in zip(ids.tolist(), np.split(order_N, starts[1:]), strict=True):
        draw = stream(candidates.seed, "random rule", candidates.step, sequence)
        scores_N[here] = draw.random(int(positions_N[here].max()) + 1)[positions_N[here]]
    return _exactly_k(candidates, torch.from_numpy(scores_N).to(candidates.entropies_N.device))


def threshold(candidates: Candidates) -> Tensor:
    """H > threshold_nats (the paper marks Qwen3-8B's forks by H > 0.672)."""
    assert candidates.threshold_nats is not None  # checked with the configuration
    return (candidates.entropies_N > candidates.threshold_nats).float()


def everything(candidates: Candidates) -> Tensor:
    """Every token of the pool: plain RLVR."""
    return torch.ones_like(candidates.entropies_N)


RULES: dict[str, Rule] = {
    "top": top,
    "bottom": bottom,
    "random": random,
    "threshold": threshold,
    "all": everything,
}


def _exactly_k(candidates: Candidates, scores_N: Tensor) -> Tensor:
    """1 for the k highest scores; equal scores go by lower (sequence id, position)."""
    k = candidates.num_kept
    if k == 0:
        return torch.zeros_like(candidates.entropies_N)
    edge = scores_N.kthvalue(len(scores_N) - k + 1).values
    weights_N = (scores_N > edge).float()
    tied = (scores_N == edge).nonzero()[:, 0]
    tied = tied[candidates.positions_N[tied].argsort(stable=True)]
    tied = tied[candidates.sequence_ids_N[tied].argsort(stable=True)]
    weights_N[tied[: k - int(weights_N.sum(dtype=torch.int64))]] = 1.0
    return weights_N


def linear_quantile(values_N: Tensor, q: float) -> Tensor:
    """The q-quantile, linearly interpolated, as ``torch.quantile`` defines it.

    With s the sorted values and r = q (N - 1): s[floor r] + (r - floor r) (s[ceil r] - s[floor r]).
    Computed in float32 like torch's, so that ``>=`` agrees with peers at the edge, but without its
    limit of 2^24 values.
    """
    sorted_N = torch.sort(values_N).values
    rank = torch.tensor(q, dtype=torch.float32, device=values_N.device) * (len(sorted_N) - 1)
    below = rank.floor().long().clamp(max=len(sorted_N) - 1)
    above = rank.ceil().long().clamp(max=len(sorted_N) - 1)
    return torch.lerp(sorted_N[below], sorted_N[above], rank - below)
