"""The laboratory knows its true forks: does entropy find them, and is it the right number?"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from forkpoint.lab import LabWorld, fork_detection, truth_of
from forkpoint.runs.tokens import TokenStore

PROMPT = re.compile(r"((?:n\d+ )+)goal n(\d+) :")

MOST_TOKENS = 2**22
"""Tokens looked at: average precision sorts them all, so there must be an end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabTruth:
    """Measured entropies against the truth, up to each completion's first illegal word."""

    tokens: int
    share: float
    """Of true forks among the tokens."""
    precision: float
    recall: float
    average_precision: float
    forks_true: float
    """Nats, mean; of the demonstration policy."""
    forks_measured: float
    forced_measured: float
    """Nats; the true value is 0."""
    error: float
    """Nats, mean |measured - true|."""

    def as_dict(self, temperature: float) -> dict[str, Any]:
        """Its entries of summary.json; what the truth is is known at temperature 1 only."""
        at_one = temperature == 1.0
        numbers = {
            "fork_tokens": self.tokens,
            "fork_share": self.share,
            "fork_precision": self.precision,
            "fork_recall": self.recall,
            "fork_average_precision": self.average_precision,
            "forks_true_nats": self.forks_true if at_one else math.nan,
            "forks_measured_nats": self.forks_measured,
            "forced_measured_nats": self.forced_measured,
            "entropy_error_vs_analytic_nats": self.error if at_one else math.nan,
        }
        return {name: x if math.isfinite(x) else None for name, x in numbers.items()}


def lab_truth(store: TokenStore, world: LabWorld, keep_fraction: float) -> LabTruth | None:
    """The truth about a store of laboratory completions; None if it holds others.

    Args:
        keep_fraction: precision and recall are those of this share of highest entropies.
    """
    measured, true, forks = _collect(store, world)
    if not len(measured):
        return None
    detection = fork_detection(measured, forks, keep_fraction)  # pyright: ignore[reportArgumentType]
    return LabTruth(
        tokens=len(measured),
        share=float(forks.mean()),
        precision=detection.precision,
        recall=detection.recall,
        average_precision=detection.average_precision,
        forks_true=_mean(true[forks]),
        forks_measured=_mean(measured[forks]),
        forced_measured=_mean(measured[~forks]),
        error=float(np.abs(measured - true).mean()),
    )


def _collect(store: TokenStore, world: LabWorld) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measured entropy, true entropy and whether a fork, of the tokens that have a truth."""
    measured: list[np.ndarray] = [np.zeros(0)]
    true: list[np.ndarray] = [np.zeros(0)]
    forks: list[np.ndarray] = [np.zeros(0, dtype=bool)]
    tokens = 0
    for prompt, words, entropies in _completions(store):
        game = PROMPT.fullmatch(prompt.strip())
        if game is None:
            return measured[0], true[0], forks[0]
        numbers = [int(word[1:]) for word in game[1].split()]
        truth = truth_of(world, numbers, int(game[2]), words)
        legal = np.isfinite(truth.entropies)
        measured.append(entropies[legal])
        true.append(np.array(truth.entropies)[legal])
        forks.append(np.array(truth.forks, dtype=bool)[legal])
        tokens += int(legal.sum())
        if tokens >= MOST_TOKENS:
            break
    return np.concatenate(measured), np.concatenate(true), np.concatenate(forks)


def _completions(store: TokenStore) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """The prompt of each completion, its words and their entropies."""
    for part in store.parts():
        batches = list(store.columns(part, ["text", "entropy"]))
        words = [text.strip() for batch in batches for text in batch.column(0).to_pylist()]
        entropies = [batch.column(1).to_numpy().astype(float) for batch in batches]
        values, start = np.concatenate([np.zeros(0), *entropies]), 0
        for batch in store.completion_columns(part, ["prompt", "tokens"]):
            for prompt, tokens in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                yield prompt, words[start : start + tokens], values[start : start + tokens]
                start += tokens


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
