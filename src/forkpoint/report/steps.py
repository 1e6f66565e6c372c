"""How entropy is spread over the tokens of a recorded step; only the columns needed are read."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forkpoint.errors import RunError
from forkpoint.runs.columns import stream_columns

BIN_WIDTHS = (0.025, 0.05, 0.1, 0.2, 0.5)
"""Nats; the histogram takes the finest that needs no more than ``MOST_BINS``."""
MOST_BINS = 80
ROWS = 256
"""Completions read at a time."""


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
    """Tokens in each bin; the last bin includes its right edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLine:
    """A token of the vocabulary, over all its occurrences in a step."""

    token_id: int
    text: str
    count: int
    mean: float
    p90: float
    share_selected: float | None
    """Among its occurrences in groups that were trained on; None without any."""


@dataclass(frozen=True, slots=True)
class StepFile:
    """The completions recorded at one step."""

    step: int
    path: Path

    def entropies(self) -> np.ndarray:
        """float32 [T] nats, of every sampled token; empty if the engine captured none."""
        batches = stream_columns(self.path, ["entropies"], rows=ROWS)
        parts = [batch.column(0).flatten().to_numpy(zero_copy_only=False) for batch in batches]
        values = np.concatenate([np.zeros(0, np.float32), *parts])
        return values[np.isfinite(values)]


def step_files(rollouts: Path) -> list[StepFile]:
    """The first and the last recorded step; one or none if there are so few."""
    found = [
        StepFile(int(match[1]), path)
        for path in rollouts.glob("step_*.parquet")
        if (match := re.fullmatch(r"step_(\d+)\.parquet", path.name))
    ]
    found.sort(key=lambda file: file.step)
    return found[:1] + found[1:][-1:]


# ---- the histogram ------------------------------------------------------------------------------


def bin_edges(maximum: float) -> np.ndarray:
    """Edges in nats from 0 to the first multiple of the bin width that is not below ``maximum``."""
    width = next((w for w in BIN_WIDTHS if maximum <= w * MOST_BINS), BIN_WIDTHS[-1])
    bins = max(1, math.ceil(maximum / width - 1e-9))
    return np.arange(bins + 1) * width


def entropy_profile(
    step: int, values_T: np.ndarray, edges: np.ndarray, threshold: float | None
) -> EntropyProfile:
    """The numbers and the histogram of one step's entropies, of which there must be some."""
    p50, p80, p95 = (float(q) for q in np.quantile(values_T, (0.5, 0.8, 0.95)))
    fifth = np.sort(values_T)[::-1][: math.ceil(len(values_T) / 5)]
    total = float(values_T.sum(dtype=np.float64))
    return EntropyProfile(
        step=step,
        tokens=len(values_T),
        mean=total / len(values_T),
        p50=p50,
        p80=p80,
        p95=p95,
        share_below_001=float((values_T < 0.01).mean()),
        share_of_top_fifth=float(fifth.sum(dtype=np.float64)) / total if total > 0 else 0.0,
        threshold=threshold,
        counts=tuple(int(c) for c in np.histogram(values_T, edges)[0]),
    )


def profiles(
    files: Sequence[StepFile], thresholds: dict[int, float]
) -> tuple[np.ndarray, list[EntropyProfile]]:
    """The profile of each step that has entropies, over one set of edges."""
    values = {file.step: file.entropies() for file in files}
    values = {step: values_T for step, values_T in values.items() if len(values_T)}
    edges = bin_edges(max((float(values_T.max()) for values_T in values.values()), default=0.0))
    return edges, [
        entropy_profile(step, values_T, edges, thresholds.get(step))
        for step, values_T in values.items()
    ]


# ---- the table of tokens ------------------------------------------------------------------------


def token_table(file: StepFile, minimum: int | None = None) -> tuple[list[TokenLine], int]:
    """Every token that occurs at least ``minimum`` times, by falling mean entropy.

    Args:
        minimum: None: 10, or one in 2000 tokens if that is more.

    Returns:
        The lines, and the minimum.
    """
    texts: dict[int, str] = {}
    parts = [
        (np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.int8)),
        *_token_parts(file.path, texts),
    ]
    ids_T, entropies_T, states_T = (np.concatenate(column) for column in zip(*parts, strict=True))
    if minimum is None:
        minimum = max(10, math.ceil(len(ids_T) / 2000))
    order = np.lexsort((entropies_T, ids_T))
    ids_T, entropies_T, states_T = ids_T[order], entropies_T[order], states_T[order]
    ids, starts, counts = np.unique(ids_T, return_index=True, return_counts=True)
    lines = [
        _token_line(int(i), texts[int(i)], entropies_T[a : a + n], states_T[a : a + n])
        for i, a, n in zip(ids, starts, counts, strict=True)
        if n >= minimum
    ]
    return sorted(lines, key=lambda line: (-line.mean, line.token_id)), minimum


LEFT_OUT = -1
"""State of a token in a group that was not trained on; else 1 if it was selected, or 0."""


def _token_parts(
    path: Path, texts: dict[int, str]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(ids, entropies, states) of the tokens whose entropy is known; fills ``texts`` by id."""
    names = ["token_ids", "tokens", "entropies", "selected", "accepted"]
    for batch in stream_columns(path, names, rows=ROWS):
        known = batch.filter(batch.column(2).is_valid())
        lengths = {tuple(known.column(i).value_lengths().to_pylist()) for i in range(4)}
        if len(lengths) != 1:
            raise RunError(f"{path}: token_ids, tokens, entropies and selected differ in length")
        ids_T, tokens_T, entropies_T, selected_T = (known.column(i).flatten() for i in range(4))
        ids_T = _numpy(ids_T)
        for token, first in zip(*np.unique(ids_T, return_index=True), strict=True):
            if int(token) not in texts:
                texts[int(token)] = tokens_T[int(first)].as_py()
        accepted_T = np.repeat(_numpy(known.column(4)), lengths.pop())
        states_T = np.where(accepted_T, _numpy(selected_T), LEFT_OUT).astype(np.int8)
        finite = np.isfinite(_numpy(entropies_T))
        yield ids_T[finite], _numpy(entropies_T)[finite], states_T[finite]


def _numpy(column: Any) -> np.ndarray:
    """An arrow array without nulls, as numpy."""
    return column.to_numpy(zero_copy_only=False)


def _token_line(token_id: int, text: str, entropies: np.ndarray, states: np.ndarray) -> TokenLine:
    trained = states[states != LEFT_OUT]
    return TokenLine(
        token_id=token_id,
        text=text,
        count=len(entropies),
        mean=float(entropies.mean(dtype=np.float64)),
        p90=float(np.quantile(entropies, 0.9)),
        share_selected=float(trained.mean()) if len(trained) else None,
    )
