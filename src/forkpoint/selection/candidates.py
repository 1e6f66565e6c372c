"""What a rule of selection is given, and what several rules need."""

import math
from collections.abc import Callable
from dataclasses import dataclass
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
    """float32 [N], ln p of the sampled words, under the policy that the entropies are of."""
    energies_N: Tensor | None = None
    """float32 [N], A^2 E: the squared norm of the token's policy gradient at the logits, see
    ``entropy.head``; None if whoever gave the entropies did not give them."""
    keep_fraction: float
    rounding: str = "ceil"
    ties: str = "order"
    threshold_nats: float | None = None
    seed: int = 0
    step: int = 0
    draws: str = "random rule"
    """Names the stream of random numbers, so that two rules of a step do not share one."""

    @property
    def num_kept(self) -> int:
        """k = ceil(keep_fraction * N), or max(1, floor(..)); 0 of 0.

        The product is taken of the decimal fraction that was written: in binary, 0.07 * 100 is
        a little more than 7, and its ceiling would be 8.
        """
        n = len(self.entropies_N)
        exact = Fraction(str(self.keep_fraction)) * n
        return math.ceil(exact) if self.rounding == "ceil" else min(n, max(1, math.floor(exact)))


Rule: TypeAlias = Callable[..., Tensor]
"""``rule(candidates) -> weights_N``; what else it takes, by name, is ``selection.parameters``."""


def exactly_k(candidates: Candidates, scores_N: Tensor, k: int | None = None) -> Tensor:
    """1 for the k highest scores; equal scores go by lower (sequence id, position).

    Args:
        k: default ``num_kept``.
    """
    k = candidates.num_kept if k is None else k
    if k == 0:
        return torch.zeros_like(candidates.entropies_N)
    edge = scores_N.kthvalue(len(scores_N) - k + 1).values
    weights_N = (scores_N > edge).float()
    tied = (scores_N == edge).nonzero()[:, 0]
    tied = tied[candidates.positions_N[tied].argsort(stable=True)]
    tied = tied[candidates.sequence_ids_N[tied].argsort(stable=True)]
    weights_N[tied[: k - int(weights_N.sum(dtype=torch.int64))]] = 1.0
    return weights_N


def even_draws(candidates: Candidates) -> Tensor:
    """A number drawn evenly from [0, 1) for each token, by (seed, ``draws``, step, sequence id,
    position) alone: float64 [N]."""
    ids_N, positions_N = (
        candidates.sequence_ids_N.cpu().numpy(),
        candidates.positions_N.cpu().numpy(),
    )
    order_N = ids_N.argsort(kind="stable")
    ids, starts = np.unique(ids_N[order_N], return_index=True)
    draws_N = np.empty(len(ids_N))
    for sequence, here in zip(ids.tolist(), np.split(order_N, starts[1:]), strict=True):
        draw = stream(candidates.seed, candidates.draws, candidates.step, sequence)
        draws_N[here] = draw.random(int(positions_N[here].max()) + 1)[positions_N[here]]
    return torch.from_numpy(draws_N).to(candidates.entropies_N.device)


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
