"""What training does to the pattern of entropies: overlap of forks, change by bin, percentiles.

All statistics here are of the same T tokens under two or more policies. Sets and bins are fixed
once, over all tokens; intervals resample prompts (``analysis.resampling``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from forkpoint.analysis.resampling import (
    interval_of,
    ratio_intervals,
    resampled_ratios,
)
from forkpoint.runs.results import EntropyChange, Estimate
from forkpoint.selection import RULES, Candidates

BINS = 20
"""Of base entropy, 5 % of the tokens each (the paper's Fig. 4)."""

GRID = 1001
"""Values, evenly spread over the tokens, between which resampled percentiles are interpolated."""

PERCENTILES = (0, 20, 40, 60, 80, 90, 95, 99, 100)
"""Followed over the checkpoints (the paper's Fig. 5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIndex:
    """Where each of T tokens stands. Made by ``token_index``."""

    prompt_T: np.ndarray
    """int64 [T], index into the P prompts."""
    sequence_T: np.ndarray
    """int64 [T], which completion."""
    position_T: np.ndarray
    """int64 [T], 0 at a completion's first token."""
    num_prompts: int

    def sums(self, values_T: np.ndarray) -> np.ndarray:
        """Summed up by prompt: float64 [P]."""
        return np.bincount(self.prompt_T, weights=values_T, minlength=self.num_prompts)


def token_index(prompt_ids: Sequence[str], lengths: Sequence[int]) -> TokenIndex:
    """The index of completions laid end to end.

    Args:
        prompt_ids: of each completion; completions of equal id belong to one prompt.
        lengths: tokens of each completion.
    """
    number = {name: i for i, name in enumerate(dict.fromkeys(prompt_ids))}
    sequences = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum([0, *lengths])[:-1]
    return TokenIndex(
        prompt_T=np.array([number[name] for name in prompt_ids], dtype=np.int64)[sequences],
        sequence_T=sequences,
        position_T=np.arange(len(sequences)) - starts[sequences],
        num_prompts=len(number),
    )


def top_tokens(entropies_T: np.ndarray, index: TokenIndex, keep_fraction: float) -> np.ndarray:
    """The forks: exactly ceil(keep_fraction T) tokens of highest entropy, bool [T].

    The rule ``top`` of training with its tie order (entropy, completion, position), over all
    tokens at once.
    """
    zeros_T = torch.zeros(len(entropies_T))
    weights_T = RULES["top"](
        Candidates(
            entropies_N=torch.from_numpy(entropies_T),
            sequence_ids_N=torch.from_numpy(index.sequence_T),
            positions_N=torch.from_numpy(index.position_T),
            advantages_N=zeros_T,
            logprobs_N=zeros_T,
            keep_fraction=keep_fraction,
        )
    )
    return weights_T.numpy() > 0


def overlaps(
    tops_CT: Sequence[np.ndarray], reference_T: np.ndarray, index: TokenIndex, *, seed: int
) -> list[Estimate | None]:
    """|A and B| / k of each policy's top tokens with the reference's: the paper's Table 1.

    Both sets have k tokens over the whole; in a resample of prompts they may not, and the overlap
    is 2 |A and B| / (|A| + |B|). Chance level: keep_fraction.
    """
    shared_PC = np.stack([index.sums(top_T & reference_T) for top_T in tops_CT], axis=1)
    sizes_PC = np.stack([index.sums(top_T) for top_T in tops_CT], axis=1)
    mean_PC = (sizes_PC + index.sums(reference_T)[:, None]) / 2
    return ratio_intervals(shared_PC, mean_PC, seed=seed, purpose="overlap")


def change_by_bin(
    base_T: np.ndarray, final_T: np.ndarray, index: TokenIndex, *, seed: int
) -> list[EntropyChange]:
    """Mean of H_final - H_base in each 5 % bin of H_base: the paper's Fig. 4.

    The token of rank r = 0 .. T - 1 by ascending base entropy (equal entropies in the order of
    ``top_tokens``, so that the bins nest with its sets) is in bin floor(20 r / T). Bins without a
    token (T < 20) are left out.
    """
    bins_T = _rank_bins(base_T, index)
    cells_T = index.prompt_T * BINS + bins_T
    shape, cells = (index.num_prompts, BINS), index.num_prompts * BINS
    change_T = final_T.astype(np.float64) - base_T
    change_PK = np.bincount(cells_T, weights=change_T, minlength=cells).reshape(shape)
    tokens_PK = np.bincount(cells_T, minlength=cells).reshape(shape).astype(np.float64)
    found = ratio_intervals(change_PK, tokens_PK, seed=seed, purpose="change by bin")
    step = 100 / BINS
    return [
        EntropyChange(
            from_percentile=number * step,
            to_percentile=(number + 1) * step,
            lowest_base_entropy=float(base_T[bins_T == number].min()),
            highest_base_entropy=float(base_T[bins_T == number].max()),
            tokens=int(tokens_PK[:, number].sum()),
            change=change,
        )
        for number, change in enumerate(found)
        if change is not None
    ]


def percentiles(entropies_T: np.ndarray, index: TokenIndex, *, seed: int) -> list[Estimate]:
    """``PERCENTILES`` of the entropies, linearly interpolated, each with an interval.

    Of a resample of prompts, the share of tokens at or below each of ``GRID`` values is a ratio of
    sums; its percentiles are read off between them. Minimum and maximum have no interval: what
    was not drawn cannot be resampled.
    """
    values = np.percentile(entropies_T, PERCENTILES).tolist()
    samples_RQ = _resampled_percentiles(entropies_T, index, seed)
    return [
        interval_of(value, samples_R if 0 < q < 100 else np.empty(0), index.num_prompts)
        for q, value, samples_R in zip(PERCENTILES, values, samples_RQ.T, strict=True)
    ]


def _resampled_percentiles(entropies_T: np.ndarray, index: TokenIndex, seed: int) -> np.ndarray:
    """float64 [R, Q]."""
    edges = np.unique(np.quantile(entropies_T, np.linspace(0, 1, GRID))).astype(np.float64)
    cells_T = index.prompt_T * len(edges) + np.searchsorted(edges, entropies_T)
    counts = np.bincount(cells_T, minlength=index.num_prompts * len(edges))
    below_PE = counts.reshape(-1, len(edges)).cumsum(1).astype(np.float64)
    shares_RE = resampled_ratios(below_PE, below_PE[:, -1:], seed=seed, purpose="percentiles")
    levels = np.array(PERCENTILES) / 100
    drawn = np.isfinite(shares_RE[:, -1])  # not a resample of prompts without tokens
    return np.array([np.interp(levels, shares_E, edges) for shares_E in shares_RE[drawn]])


def _rank_bins(entropies_T: np.ndarray, index: TokenIndex) -> np.ndarray:
    """int64 [T], the bin of each token."""
    count = len(entropies_T)
    # Highest first, as the rule ``top`` sorts.
    order = np.lexsort((index.position_T, index.sequence_T, -entropies_T))
    bins_T = np.empty(count, dtype=np.int64)
    bins_T[order[::-1]] = np.arange(count) * BINS // count
    return bins_T
