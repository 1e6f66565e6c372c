"""Rules of other papers, behind the same seam: from candidates to a weight for each.

With p the sampled word's probability, H the entropy, A the advantage. Each rule sees the tokens of
one scope group before the first update of the step (with ``selection.entropy = "current"`` before
each update), where the papers' own code may take the policy of the moment and a micro-batch at a
time; docs/selection.md says what else differs.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from forkpoint.errors import SelectionError
from forkpoint.selection.candidates import Candidates, even_draws, exactly_k, linear_quantile

RSI_EPSILON = 1e-6
"""Added to an entropy that is divided by; the paper's is not known."""


def clip_cov(
    candidates: Candidates, *, low: float = 1.0, high: float = 5.0, share: float = 2e-4
) -> Tensor:
    """All but a few tokens that would make the entropy fall fastest: Clip-Cov (2505.22617).

    With cov = (A - mean A) (ln p - mean ln p), of the n candidates max(1, floor(share n)) are left
    out, drawn evenly among those with low < cov < high.
    """
    _need(0 <= share <= 1 and low < high, "clip_cov needs 0 <= share <= 1 and low < high")
    cov_N = _covariances(candidates)
    inside_N = (cov_N > low) & (cov_N < high)
    count = min(max(1, math.floor(share * len(cov_N))), int(inside_N.sum()))
    own = replace(candidates, draws=f"{candidates.draws}, clip_cov")
    scores_N = torch.where(inside_N, even_draws(own), -1.0)
    return 1 - exactly_k(candidates, scores_N, count)


def high_covariance(candidates: Candidates) -> Tensor:
    """The k tokens with the largest cov of ``clip_cov``: KL-Cov (2505.22617) puts a penalty on
    them, see ``loss.marked``."""
    return exactly_k(candidates, _covariances(candidates))


def _covariances(candidates: Candidates) -> Tensor:
    """(A - mean A) (ln p - mean ln p) of each candidate: float64 [N]."""
    advantages_N, logprobs_N = candidates.advantages_N.double(), candidates.logprobs_N.double()
    return (advantages_N - advantages_N.mean()) * (logprobs_N - logprobs_N.mean())


def relative_surprisal(candidates: Candidates, *, low: float = 0.5, high: float = 2.0) -> Tensor:
    """Tokens about as surprising as the position is uncertain: low <= -ln p / H <= high.

    RSI-S (2606.31575). The paper's own bounds are not known to us; these are of re-implementations.
    """
    _need(0 <= low < high, "relative_surprisal needs 0 <= low < high")
    rsi_N = -candidates.logprobs_N.double() / (candidates.entropies_N.double() + RSI_EPSILON)
    return ((rsi_N >= low) & (rsi_N <= high)).float()


def stapo(
    candidates: Candidates, *, probability: float = 0.002, entropy_quantile: float = 0.2
) -> Tensor:
    """All but rare words in right answers where the policy was sure of others: STAPO (2602.15620).

    Left out are tokens with A > 0, p < probability, and H below the quantile of the candidates'
    entropies. The paper names 20 % in one place and 80 % in another for the quantile.
    """
    _need(0 < probability <= 1, "stapo needs 0 < probability <= 1")
    _need(0 <= entropy_quantile <= 1, "stapo needs 0 <= entropy_quantile <= 1")
    edge = linear_quantile(candidates.entropies_N, entropy_quantile)
    spurious_N = (
        (candidates.advantages_N > 0)
        & (candidates.logprobs_N.double() < math.log(probability))
        & (candidates.entropies_N < edge)
    )
    return (~spurious_N).float()


def not_mastered(candidates: Candidates, *, probability: float = 0.99) -> Tensor:
    """All but what the policy does well already: tokens with A > 0 and p >= probability are left
    out (UloRL, 2507.19766; its switch by the mean entropy is not here)."""
    _need(0 < probability <= 1, "not_mastered needs 0 < probability <= 1")
    mastered_N = (candidates.advantages_N > 0) & (
        candidates.logprobs_N.double() >= math.log(probability)
    )
    return (~mastered_N).float()


def entropy_advantage(candidates: Candidates, *, alpha: float = 0.4, kappa: float = 2.0) -> Tensor:
    """Every token, its advantage raised where the policy was undecided (2506.14758).

    The paper trains with A' = A + min(alpha H, |A| / kappa), kappa > 1, so that no sign flips. The
    weight is A' / A: 1 + min(alpha H / |A|, 1 / kappa) where A > 0, and 1 - .. where A < 0. It is
    the paper's loss under a denominator that does not count weights, such as ``all``.
    """
    _need(alpha >= 0 and kappa > 1, "entropy_advantage needs alpha >= 0 and kappa > 1")
    advantages_N = candidates.advantages_N.double()
    bonus_N = alpha * candidates.entropies_N.double() / advantages_N.abs().clamp(min=1e-300)
    return (1 + advantages_N.sign() * bonus_N.clamp(max=1 / kappa)).float()


def _need(condition: bool, text: str) -> None:
    """Refuse parameters."""
    if not condition:
        raise SelectionError(text)
