"""analysis/summary.json: the pattern of a token store's entropies in numbers.

Everything is computed in passes over the store, a batch of columns at a time. What grows with the
store is a few numbers per prompt and per position; nothing grows with the number of tokens.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from forkpoint.analysis.lab_truth import lab_truth
from forkpoint.analysis.quantiles import Distribution, distribution
from forkpoint.analysis.resampling import ratio_intervals
from forkpoint.analysis.words import find_words, write_words
from forkpoint.errors import RunError
from forkpoint.evaluation.statistics import bootstrap_interval, wilson_interval
from forkpoint.lab import LabWorld
from forkpoint.runs.atomic import write_json
from forkpoint.runs.results import Estimate
from forkpoint.runs.tokens import TokenStore

MOST_BUCKETS = 40
"""Of positions, and of lengths."""

RIGHT = 1.0
"""A completion with this reward or more is correct."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SummarySettings:
    """What the summary depends on besides the tokens."""

    keep_fraction: float = 0.2
    min_count: int = 100
    """Words that occur more often than this are listed."""


def summarise(
    store: TokenStore, described: dict[str, Any], settings: SummarySettings
) -> dict[str, Any]:
    """Write analysis/summary.json and analysis/words.parquet, and return the former.

    Args:
        described: analysis/config.json.

    Raises:
        RunError: the store has no token, or the disk is full.
    """
    found = distribution(lambda: _entropies(store), settings.keep_fraction)
    tally = Tally()
    for part in store.parts():
        tally.add(store, part)
    words = find_words(store, settings.min_count)
    write_words(store.root / "words.parquet", words)
    summary = {
        **_source(described),
        "tokens": found.tokens,
        "completions": tally.completions,
        "prompts": len(tally.prompts),
        "keep_fraction": settings.keep_fraction,
        **_numbers(found),
        **tally.entries(seed=described["config"]["evaluation"]["seed"]),
        "words": {"min_count": settings.min_count, "kinds": len(words)},
        **_lab(store, described, settings.keep_fraction),
    }
    write_json(store.root / "summary.json", summary)
    return summary


def _entropies(store: TokenStore) -> Iterator[np.ndarray]:
    for part in store.parts():
        for batch in store.columns(part, ["entropy"]):
            yield batch.column(0).to_numpy()


def _source(described: dict[str, Any]) -> dict[str, Any]:
    config = described["config"]
    task = config["task"]
    sampled = described["source"] == "sampled"
    name = task.get("name") or task.get("path") or task["type"]
    return {
        "schema": 1,
        "model": config["model"]["path"],
        "source": described["source"],
        "task": name if sampled else None,
        "temperature": config["rollout"]["temperature"],
    }


def _numbers(found: Distribution) -> dict[str, Any]:
    return {
        "mean_entropy_nats": found.mean,
        "share_below_0.01": found.share_below,
        "threshold_nats": found.threshold,
        "kept_fraction": found.kept_fraction,
        "entropy_share_of_top": found.share_of_top,
        "percentiles": {str(p): x for p, x in found.percentiles.items()},
        "histogram": {"edges": list(found.edges), "counts": list(found.counts)},
    }


def _lab(store: TokenStore, described: dict[str, Any], keep_fraction: float) -> dict[str, Any]:
    """The laboratory's entries, if the completions are games of it."""
    config = described["config"]
    if config["task"]["type"] != "lab":
        return {}
    truth = lab_truth(store, LabWorld(verbosity=config["task"]["verbosity"]), keep_fraction)
    return (
        {} if truth is None else {"task": "lab", **truth.as_dict(config["rollout"]["temperature"])}
    )


# ---- by position, correctness, length ------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """Sums over completions, added up part by part."""

    completions: int = 0
    prompts: dict[str, int] = field(default_factory=dict)
    """Prompt id -> its line in the ``_P`` arrays."""
    sums_P2: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    """Entropy of the tokens of [correct, wrong] completions."""
    tokens_P2: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    marked_P2: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    """[correct, wrong] completions; those without a reward are neither."""
    all_P: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """All completions."""
    position_sums: np.ndarray = field(default_factory=lambda: np.zeros(0))
    position_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0))
    length_sums: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Entropy, by the completion's length."""
    length_completions: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, store: TokenStore, part: int) -> None:
        """Add a part of the store."""
        values_T = np.concatenate(
            [np.zeros(0), *(b.column(0).to_numpy() for b in store.columns(part, ["entropy"]))]
        )
        batches = list(store.completion_columns(part, ["prompt_id", "reward", "tokens"]))
        prompt_B = np.array([self._line(p) for b in batches for p in b.column(0).to_pylist()], int)
        reward_B = _joined(b.column(1).to_numpy(zero_copy_only=False) for b in batches)
        length_B = _joined(b.column(2).to_numpy() for b in batches).astype(np.int64)
        if length_B.sum() != len(values_T):
            raise RunError(
                f"{store.tokens_path(part)} and {store.completions_path(part)} do not belong "
                "together: delete both and run the analysis again"
            )
        ends_B = length_B.cumsum()
        upto = np.concatenate([[0.0], values_T.cumsum()])
        sums_B = upto[ends_B] - upto[ends_B - length_B]
        position_T = np.arange(len(values_T)) - np.repeat(ends_B - length_B, length_B)
        self.completions += len(length_B)
        self._add_prompts(prompt_B, reward_B, length_B, sums_B)
        self.position_sums = _add(self.position_sums, np.bincount(position_T, weights=values_T))
        self.position_tokens = _add(self.position_tokens, np.bincount(position_T))
        self.length_sums = _add(self.length_sums, np.bincount(length_B, weights=sums_B))
        self.length_completions = _add(self.length_completions, np.bincount(length_B))

    def entries(self, *, seed: int) -> dict[str, Any]:
        """The summary's entries."""
        return {
            "by_position": self._by_position(),
            "by_correctness": self._by_correctness(seed),
            "by_length": self._by_length(),
            "accuracy": None if (found := self._accuracy(seed)) is None else found.model_dump(),
        }

    def _line(self, prompt_id: str) -> int:
        return self.prompts.setdefault(prompt_id, len(self.prompts))

    def _add_prompts(
        self,
        prompt_B: np.ndarray,
        reward_B: np.ndarray,
        length_B: np.ndarray,
        sums_B: np.ndarray,
    ) -> None:
        lines = len(self.prompts)
        marked_B = np.isfinite(reward_B)
        cell_B = prompt_B[marked_B] * 2 + (reward_B[marked_B] < RIGHT)
        streams = {"sums_P2": sums_B, "tokens_P2": length_B, "marked_P2": np.ones(len(length_B))}
        for name, values_B in streams.items():
            cells = np.bincount(cell_B, weights=values_B[marked_B], minlength=2 * lines)
            setattr(self, name, _add(getattr(self, name), cells.reshape(lines, 2)))
        self.all_P = _add(self.all_P, np.bincount(prompt_B, minlength=lines))

    def _by_position(self) -> list[dict[str, Any]]:
        return [
            {"from": a, "to": b, "tokens": int(tokens), "mean": _ratio(total, tokens)}
            for a, b, total, tokens in _buckets(self.position_sums, self.position_tokens, start=0)
        ]

    def _by_length(self) -> list[dict[str, Any]]:
        """``mean`` is over the tokens of the completions."""
        tokens = self.length_completions * np.arange(len(self.length_completions))
        sums = _buckets(self.length_sums, tokens, start=1)
        counts = _buckets(self.length_completions, self.length_completions, start=1)
        return [
            {"from": a, "to": b, "completions": int(n), "mean": _ratio(total, length)}
            for (a, b, total, length), (_, _, n, _) in zip(sums, counts, strict=True)
            if n
        ]

    def _by_correctness(self, seed: int) -> list[dict[str, Any]]:
        found = ratio_intervals(self.sums_P2, self.tokens_P2, seed=seed, purpose="by correctness")
        return [
            {
                "label": label,
                "completions": int(self.marked_P2[:, column].sum()),
                "tokens": int(self.tokens_P2[:, column].sum()),
                "mean": interval.value,
                "low": interval.low,
                "high": interval.high,
            }
            for column, (label, interval) in enumerate(
                zip(("correct", "wrong"), found, strict=True)
            )
            if interval is not None
        ]

    def _accuracy(self, seed: int) -> Estimate | None:
        """As ``evaluation.accuracy``: a completion without a reward counts as wrong."""
        if not self.marked_P2.any():
            return None
        right_P = (self.marked_P2[:, 0] / self.all_P).tolist()
        if (self.all_P == 1).all():
            low, high = wilson_interval(sum(right_P), len(right_P))
        else:
            low, high = bootstrap_interval(right_P, seed=seed)
        return Estimate(value=float(np.mean(right_P)), low=low, high=high, n=len(right_P))


def _joined(arrays: Iterator[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *arrays])


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b along the first axis, the shorter one filled up with zeros."""
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    total = longer.astype(np.float64)
    total[: len(shorter)] += shorter
    return total


def _buckets(
    sums: np.ndarray, counts: np.ndarray, *, start: int
) -> list[tuple[int, int, float, float]]:
    """(from, to, sum, count) of at most ``MOST_BUCKETS`` runs of equal width; ``to`` is the last
    index within."""
    width = max(1, math.ceil((len(sums) - start) / MOST_BUCKETS))
    return [
        (a, min(a + width, len(sums)) - 1, float(sums[a : a + width].sum()), float(part.sum()))
        for a in range(start, len(sums), width)
        for part in [counts[a : a + width]]
    ]


def _ratio(total: float, count: float) -> float | None:
    return total / count if count else None
