"""How entropy is spread over the tokens of a recorded step, and which tokens have most of it."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forkpoint.analysis.quantiles import distribution
from forkpoint.analysis.words import Word, find_words
from forkpoint.runs.completions import read_columns

FINEST = 0.025
"""Nats, the width of a histogram's bins, or what it is a whole part of."""
WIDER = (1, 2, 4, 8, 20)
"""Times ``FINEST``; the histogram takes the first that needs no more than ``MOST_BINS``."""
MOST_BINS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyProfile:
    """How entropy is spread over the tokens of a step."""

    step: int
    tokens: int
    mean: float
    p50: float
    p80: float
    p95: float
    share_below_001: float
    share_of_top_fifth: float
    """Of the sum of all entropies, what the ceil(T/5) tokens of highest entropy hold."""
    threshold: float | None
    """``selection/threshold_nats`` of the step."""
    counts: tuple[int, ...]
    """Tokens in each bin of the histogram."""


@dataclass(frozen=True, slots=True)
class StepFile:
    """The completions recorded at one step."""

    step: int
    path: Path

    def entropies(self) -> Iterator[np.ndarray]:
        """float32 nats, of every stored token, some at a time; none if the engine captured none."""
        for columns in read_columns([self.path], ["entropies"]):
            values = columns.flat("entropies")
            yield np.maximum(values[np.isfinite(values)], 0)

    @property
    def has_entropies(self) -> bool:
        return any(len(values) for values in self.entropies())


def step_files(folder: Path) -> list[StepFile]:
    """The first and the last recorded step; one or none if there are so few."""
    found = [
        StepFile(int(match[1]), path)
        for path in folder.glob("step_*.parquet")
        if (match := re.fullmatch(r"step_(\d+)\.parquet", path.name))
    ]
    found.sort(key=lambda file: file.step)
    return found[:1] + found[1:][-1:]


def profiles(
    files: Sequence[StepFile], thresholds: dict[int, float]
) -> tuple[np.ndarray, list[EntropyProfile]]:
    """The profile of each step that has entropies, over one set of edges in nats."""
    found = {
        file.step: distribution(file.entropies, 0.2, bin_width=FINEST)
        for file in files
        if file.has_entropies
    }
    most = max((len(one.counts) for one in found.values()), default=1)
    wider = next((w for w in WIDER if most <= w * MOST_BINS), WIDER[-1])
    bins = math.ceil(most / wider)
    return np.arange(bins + 1) * (FINEST * wider), [
        EntropyProfile(
            step=step,
            tokens=one.tokens,
            mean=one.mean,
            p50=one.percentiles[50],
            p80=one.percentiles[80],
            p95=one.percentiles[95],
            share_below_001=one.share_below,
            share_of_top_fifth=one.share_of_top,
            threshold=thresholds.get(step),
            counts=tuple(_merged(one.counts, wider, bins).tolist()),
        )
        for step, one in found.items()
    ]


def _merged(counts: Sequence[int], wider: int, bins: int) -> np.ndarray:
    """Counts of ``wider`` neighbouring bins together."""
    padded = np.pad(np.asarray(counts, np.int64), (0, bins * wider - len(counts)))
    return padded.reshape(bins, wider).sum(1)


def token_table(file: StepFile, minimum: int | None = None) -> tuple[list[Word], int]:
    """Every token text that occurs at least ``minimum`` times, by falling mean entropy.

    Args:
        minimum: None: 10, or one in 2000 tokens if that is more.

    Returns:
        The lines, and the minimum.
    """
    if minimum is None:
        minimum = max(10, math.ceil(sum(map(len, file.entropies())) / 2000))
    return find_words([file.path], minimum - 1), minimum
