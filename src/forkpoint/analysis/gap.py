"""The value gap: how far the expected reward moves when one token is replaced.

At a position, the kept token and each alternative are followed by n continuations drawn
independently. Their mean rewards a and b estimate the values V(kept) and V(alternative), but
|a - b| is biased upwards: two equal values give different means. The square can be put right:

    E[(a - b)^2] = (V_a - V_b)^2 + var_a / n_a + var_b / n_b,

so (a - b)^2 - s_a^2 / n_a - s_b^2 / n_b, with the unbiased sample variances s^2, has the mean
(V_a - V_b)^2. It may be negative for one position; its mean over positions is what is reported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from forkpoint.analysis.resampling import interval_of, resampled_ratios
from forkpoint.runs.results import Estimate, GapGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """The rewards of the answers that begin with the same tokens."""

    rewards: tuple[float, ...]
    certain: bool
    """Nothing was left to draw (the answer ends with this token): its one reward is the value."""

    @property
    def value(self) -> float:
        return float(np.mean(self.rewards))

    @property
    def noise(self) -> float:
        """s^2 / n, the unbiased estimate of the variance of ``value``."""
        return 0.0 if self.certain else float(np.var(self.rewards, ddof=1)) / len(self.rewards)

    @property
    def measured(self) -> bool:
        """Whether there are rewards enough to know the noise."""
        return len(self.rewards) >= (1 if self.certain else 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another token in the place of the one that was sampled."""

    token_id: int
    text: str
    logprob: float
    """Nats, under the distribution the kept token was drawn from."""
    branch: Branch


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """One measured position. Made by ``branching``, for ``summarise_gaps``."""

    prompt_id: str
    sample: int
    position: int
    kind: Literal["high", "low"]
    """``high`` (among the top tokens by entropy) or ``low``."""
    entropy: float
    token_id: int
    text: str
    kept: Branch
    alternatives: tuple[Alternative, ...]

    def weights(self) -> np.ndarray:
        """The alternatives' probabilities, renormalised to sum to 1."""
        logprobs = np.array([a.logprob for a in self.alternatives])
        weights = np.exp(logprobs - logprobs.max())
        return weights / weights.sum()

    def gaps(self) -> tuple[float, float, float]:
        """(mean absolute gap, squared gap, resampled squared gap) of this position.

        The first two are means over the alternatives with ``weights``; the third weighs each
        alternative by its probability itself: the expected squared move of the value when the
        model draws this token once more (as far as the alternatives reach; the kept token moves
        nothing).
        """
        squared = np.array([squared_gap(self.kept, a.branch) for a in self.alternatives])
        absolute = np.array([abs(self.kept.value - a.branch.value) for a in self.alternatives])
        chances = np.exp([a.logprob for a in self.alternatives])
        weights = self.weights()
        return float(weights @ absolute), float(weights @ squared), float(chances @ squared)


def squared_gap(a: Branch, b: Branch) -> float:
    """The unbiased estimate of (V_a - V_b)^2; see the head of this file."""
    return (a.value - b.value) ** 2 - a.noise - b.noise


@dataclass(frozen=True, slots=True, kw_only=True)
class GapSummary:
    """High against low entropy. Intervals resample prompts."""

    high: GapGroup
    low: GapGroup
    difference: Estimate | None
    """Mean squared gap, high minus low."""
    resampled_difference: Estimate | None
    """The same of the resampled squared gap."""


def summarise_gaps(positions: Sequence[Position], *, seed: int) -> GapSummary:
    """Means over positions; None where there is no position of a kind."""
    sums_PK, counts_PK = _sums(positions)
    samples_RK = resampled_ratios(sums_PK, counts_PK, seed=seed, purpose="gaps")
    with np.errstate(invalid="ignore"):
        means_K = sums_PK.sum(0) / counts_PK.sum(0)
    gaps = [
        _interval(value, samples_R, len(sums_PK))
        for value, samples_R in zip(means_K, samples_RK.T, strict=True)
    ]
    difference, resampled_difference = (
        _interval(
            means_K[k] - means_K[k + 3], samples_RK[:, k] - samples_RK[:, k + 3], len(sums_PK)
        )
        for k in (1, 2)
    )
    high, low = (
        GapGroup(
            positions=int(counts_PK[:, k].sum()),
            gap=gaps[k],
            squared_gap=gaps[k + 1],
            resampled_squared_gap=gaps[k + 2],
        )
        for k in (0, 3)
    )
    return GapSummary(
        high=high, low=low, difference=difference, resampled_difference=resampled_difference
    )


def _interval(value: float, samples_R: np.ndarray, prompts: int) -> Estimate | None:
    return interval_of(float(value), samples_R, prompts) if np.isfinite(value) else None


def _sums(positions: Sequence[Position]) -> tuple[np.ndarray, np.ndarray]:
    """Of each prompt, float64 [P, 6]: the three gaps of the high positions, then of the low ones,
    and how many positions went in."""
    number = {name: i for i, name in enumerate(dict.fromkeys(p.prompt_id for p in positions))}
    sums_PK, counts_PK = np.zeros((len(number), 6)), np.zeros((len(number), 6))
    for position in positions:
        columns = slice(0, 3) if position.kind == "high" else slice(3, 6)
        sums_PK[number[position.prompt_id], columns] += position.gaps()
        counts_PK[number[position.prompt_id], columns] += 1
    return sums_PK, counts_PK
