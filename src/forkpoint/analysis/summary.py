"""The pattern of stored completions' entropies in numbers: ``results.Pattern``.

Everything is computed in passes over the files, a row group of some columns at a time. What grows
is a few numbers per prompt, per position and per length; nothing grows with the number of tokens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from forkpoint.analysis.lab_truth import lab_truth
from forkpoint.analysis.quantiles import distribution
from forkpoint.analysis.resampling import ratio_intervals
from forkpoint.analysis.words import find_words, write_words
from forkpoint.config.run import name_of_task
from forkpoint.evaluation.statistics import bootstrap_interval, wilson_interval
from forkpoint.lab import build_world
from forkpoint.runs.completions import Columns, read_columns
from forkpoint.runs.results import (
    CorrectnessGroup,
    EntropyBin,
    Estimate,
    ForkTruth,
    Histogram,
    Pattern,
)

MOST_BUCKETS = 40
"""Of positions, and of lengths."""

MARKS = ("correct", "wrong", "without a verdict")
"""The last axis of the ``_P3`` arrays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SummarySettings:
    """What the summary depends on besides the tokens."""

    keep_fraction: float = 0.2
    min_count: int = 100
    """Words that occur more often than this are listed."""


def summarise(
    paths: Sequence[Path], words_path: Path, described: dict[str, Any], settings: SummarySettings
) -> Pattern:
    """The pattern of all tokens of some files of completions; writes words.parquet beside it.

    Args:
        described: see ``analyze.describe``.

    Raises:
        RunError: there is no token, an entropy is no number, or the disk is full.
    """
    found = distribution(lambda: _entropies(paths), settings.keep_fraction)
    tally = _Tally()
    for columns in read_columns(paths, ["prompt_id", "verdict", "entropies"]):
        tally.add(columns)
    words = find_words(paths, settings.min_count)
    write_words(words_path, words)
    config = described["config"]
    seed, temperature = config["evaluation"]["seed"], config["rollout"]["temperature"]
    lab = _lab_truth(paths, config, settings.keep_fraction)
    return Pattern(
        model=config["model"]["path"],
        source=described["source"],
        task=name_of_task(config["task"]) if described["source"] == "sampled" or lab else None,
        temperature=temperature,
        seed=seed,
        tokens=found.tokens,
        completions=tally.completions,
        prompts=len(tally.prompts),
        keep_fraction=settings.keep_fraction,
        mean_entropy=found.mean,
        share_below_0_01=found.share_below,
        entropy_threshold=found.threshold,
        kept_fraction=found.kept_fraction,
        entropy_share_of_top=found.share_of_top,
        percentiles=found.percentiles,
        histogram=Histogram(edges=found.edges, counts=found.counts),
        by_position=tally.by_position(),
        by_length=tally.by_length(),
        by_correctness=tally.by_correctness(seed),
        accuracy=tally.accuracy(seed),
        words_min_count=settings.min_count,
        words_listed=len(words),
        lab=lab,
    )


def _entropies(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    return (columns.flat("entropies") for columns in read_columns(paths, ["entropies"]))


def _lab_truth(
    paths: Sequence[Path], config: dict[str, Any], keep_fraction: float
) -> ForkTruth | None:
    """Of completions that are answers of the laboratory."""
    if config["task"]["type"] != "lab":
        return None
    world = build_world(config["task"]["world"], config["task"]["parameters"])
    return lab_truth(paths, world, keep_fraction, temperature=config["rollout"]["temperature"])


# ---- by position, correctness, length ------------------------------------------------------------


@dataclass(slots=True)
class _Tally:
    """Sums over completions, added up row group by row group."""

    completions: int = 0
    prompts: dict[str, int] = field(default_factory=dict)
    """Prompt id -> its line in the ``_P3`` arrays."""
    sums: dict[str, np.ndarray] = field(default_factory=dict)
    """By what is summed up, and over what: float64, as long as what has been seen."""

    def add(self, columns: Columns) -> None:
        """Add a row group."""
        values_T = columns.flat("entropies").astype(np.float64)
        length_B = columns.lengths("entropies")
        ends_B = length_B.cumsum()
        upto = np.concatenate([[0.0], values_T.cumsum()])
        entropy_B = upto[ends_B] - upto[ends_B - length_B]
        position_T = np.arange(len(values_T)) - np.repeat(ends_B - length_B, length_B)
        verdict_B = columns.numbers("verdict")
        mark_B = np.where(np.isnan(verdict_B), 2, verdict_B < 1.0)
        ids = columns.values("prompt_id")
        prompt_B = np.array([self.prompts.setdefault(i, len(self.prompts)) for i in ids], int)
        cell_B = (prompt_B * len(MARKS) + mark_B).astype(np.int64)
        self.completions += len(columns)
        self._sum("entropy by mark", cell_B, entropy_B)
        self._sum("tokens by mark", cell_B, length_B)
        self._sum("completions by mark", cell_B)
        self._sum("entropy by position", position_T, values_T)
        self._sum("tokens by position", position_T)
        self._sum("entropy by length", length_B, entropy_B)
        self._sum("completions by length", length_B)

    def _sum(self, name: str, cells: np.ndarray, weights: np.ndarray | None = None) -> None:
        new = np.bincount(cells, weights=weights).astype(np.float64)
        old = self.sums.get(name, new[:0])
        longer, shorter = (old, new) if len(old) >= len(new) else (new, old)
        longer[: len(shorter)] += shorter
        self.sums[name] = longer

    def _by_mark(self, name: str) -> np.ndarray:
        """Sums by prompt and mark: float64 [P, 3]."""
        sums, cells = self.sums[f"{name} by mark"], len(self.prompts) * len(MARKS)
        return np.pad(sums, (0, cells - len(sums))).reshape(-1, len(MARKS))

    def by_position(self) -> tuple[EntropyBin, ...]:
        """The mean entropy of runs of positions."""
        sums, counts = self.sums["entropy by position"], self.sums["tokens by position"]
        return tuple(_bins(sums, counts, counts, first=0))

    def by_length(self) -> tuple[EntropyBin, ...]:
        """The mean entropy of completions of similar length, where there are any."""
        sums, counts = self.sums["entropy by length"], self.sums["completions by length"]
        tokens = counts * np.arange(len(counts))
        return tuple(one for one in _bins(sums, tokens, counts, first=1) if one.count)

    def by_correctness(self, seed: int) -> tuple[CorrectnessGroup, ...]:
        """The mean entropy of right and of wrong completions, where there are any."""
        entropy_P3, tokens_P3 = self._by_mark("entropy"), self._by_mark("tokens")
        found = ratio_intervals(
            entropy_P3[:, :2], tokens_P3[:, :2], seed=seed, purpose="by correctness"
        )
        completions = self._by_mark("completions").sum(0)
        return tuple(
            CorrectnessGroup(
                label=label,
                completions=int(completions[column]),
                tokens=int(tokens_P3[:, column].sum()),
                mean_entropy=mean,
            )
            for column, (label, mean) in enumerate(zip(("correct", "wrong"), found, strict=True))
            if mean is not None
        )

    def accuracy(self, seed: int) -> Estimate | None:
        """As ``evaluation.accuracy``: a completion without a verdict counts as wrong."""
        completions_P3 = self._by_mark("completions")
        if not completions_P3[:, :2].any():
            return None
        all_P = completions_P3.sum(1)
        right_P = (completions_P3[:, 0] / all_P).tolist()
        if (all_P == 1).all():
            low, high = wilson_interval(sum(right_P), len(right_P))
        else:
            low, high = bootstrap_interval(right_P, seed=seed)
        return Estimate(value=float(np.mean(right_P)), low=low, high=high, n=len(right_P))


def _bins(
    sums: np.ndarray, tokens: np.ndarray, counts: np.ndarray, *, first: int
) -> Iterator[EntropyBin]:
    """At most ``MOST_BUCKETS`` runs of equal width from ``first`` on."""
    width = max(1, math.ceil((len(sums) - first) / MOST_BUCKETS))
    for start in range(first, len(sums), width):
        run = slice(start, start + width)
        length = float(tokens[run].sum())
        yield EntropyBin(
            first=start,
            last=min(start + width, len(sums)) - 1,
            count=int(counts[run].sum()),
            mean_entropy=float(sums[run].sum()) / length if length else None,
        )
