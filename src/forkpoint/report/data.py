"""What the page says, computed from the files of run directories."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from forkpoint.errors import RunError
from forkpoint.runs import RolloutRow, RunDirectory, read_metrics, read_rollouts

BIN_WIDTHS = (0.025, 0.05, 0.1, 0.2, 0.5)
"""Nats; the histogram takes the finest that needs no more than ``MOST_BINS``."""
MOST_BINS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """The small files of one run directory. Made by ``load_runs``."""

    label: str
    """The directory's name, or ``control``; unique on the page."""
    root: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def last_step(self) -> int:
        return max((int(line["step"]) for line in self.metrics if "step" in line), default=0)

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of the lines where the metric stands and is a number."""
        return [
            (int(line["step"]), float(line[name]))
            for line in self.metrics
            if "step" in line and is_number(line.get(name))
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRows:
    """The completions of one recorded step."""

    step: int
    rows: list[RolloutRow]

    def entropies(self) -> np.ndarray:
        """float64 [T] nats, of every sampled token; empty if the engine captured none."""
        parts = [np.asarray(row.entropies, dtype=float) for row in self.rows if row.entropies]
        values = np.concatenate(parts) if parts else np.zeros(0)
        return values[np.isfinite(values)]


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


def is_number(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a finite number; a metric that was not finite is null."""
    return isinstance(value, int | float) and math.isfinite(value)


# ---- reading ------------------------------------------------------------------------------------


def load_runs(paths: Sequence[Path]) -> list[RunData]:
    """The runs in the order given, each followed by its ``control/`` if it has one.

    Raises:
        RunError: none given, no such directory, no metrics.jsonl in it, or a file that is not JSON.
    """
    if not paths:
        raise RunError("a report needs at least one run directory")
    runs: list[RunData] = []
    for root in dict.fromkeys(Path(p).resolve() for p in paths):
        names = (root.name, f"{root.parent.name}/{root.name}", str(root))
        runs.append(_load_run(root, _first_free(names, runs)))
        control = root / "control"
        if RunDirectory(control).metrics_jsonl.exists():
            names = ("control", f"{runs[-1].label}/control")
            runs.append(_load_run(control, _first_free(names, runs)))
    return runs


def _first_free(names: Sequence[str], runs: Sequence[RunData]) -> str:
    taken = {run.label for run in runs}
    return next((name for name in names if name not in taken), names[-1])


def _load_run(root: Path, label: str) -> RunData:
    directory = RunDirectory(root)
    if not root.is_dir():
        raise RunError(f"{root}: no such run directory")
    if not directory.metrics_jsonl.exists():
        raise RunError(f"{root} holds no metrics.jsonl: it is not a run directory")
    return RunData(
        label=label,
        root=root,
        config=_read_json(directory.config_json),
        environment=_read_json(directory.env_json),
        metrics=read_metrics(directory.metrics_jsonl),
        summary=_read_json(root / "summary.json"),
    )


def _read_json(path: Path) -> dict[str, Any]:
    """An object; empty if there is no such file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is not a JSON object")
    return value


def first_and_last(run: RunData) -> list[StepRows]:
    """The first and the last step whose completions were recorded; one or none if it has so few."""
    found = []
    for path in RunDirectory(run.root).rollouts_dir.glob("step_*.parquet"):
        if match := re.fullmatch(r"step_(\d+)\.parquet", path.name):
            found.append((int(match[1]), path))
    ends = sorted(found)[:1] + sorted(found)[1:][-1:]
    return [StepRows(step=step, rows=read_rollouts(path)) for step, path in ends]


# ---- entropies ----------------------------------------------------------------------------------


def bin_edges(maximum: float) -> np.ndarray:
    """Edges in nats from 0 to the first multiple of the bin width that is not below ``maximum``."""
    width = next((w for w in BIN_WIDTHS if maximum <= w * MOST_BINS), BIN_WIDTHS[-1])
    bins = max(1, math.ceil(maximum / width - 1e-9))
    return np.arange(bins + 1) * width


def entropy_profile(step: StepRows, edges: np.ndarray, threshold: float | None) -> EntropyProfile:
    """The numbers and the histogram of one step's entropies, of which there must be some."""
    values = step.entropies()
    p50, p80, p95 = (float(np.quantile(values, q)) for q in (0.5, 0.8, 0.95))
    fifth = np.sort(values)[::-1][: math.ceil(len(values) / 5)]
    total = float(values.sum())
    return EntropyProfile(
        step=step.step,
        tokens=len(values),
        mean=float(values.mean()),
        p50=p50,
        p80=p80,
        p95=p95,
        share_below_001=float((values < 0.01).mean()),
        share_of_top_fifth=float(fifth.sum()) / total if total > 0 else 0.0,
        threshold=threshold,
        counts=tuple(int(c) for c in np.histogram(values, edges)[0]),
    )


def profiles(run: RunData, steps: Sequence[StepRows]) -> tuple[np.ndarray, list[EntropyProfile]]:
    """The profile of each step that has entropies, over one set of edges."""
    steps = [step for step in steps if len(step.entropies())]
    highest = max((float(step.entropies().max()) for step in steps), default=0.0)
    edges = bin_edges(highest)
    thresholds = dict(run.series("selection/threshold_nats"))
    return edges, [entropy_profile(step, edges, thresholds.get(step.step)) for step in steps]


def minimum_count(step: StepRows) -> int:
    """How often a token must occur to stand in the table: 10, or one in 2000 tokens."""
    return max(10, math.ceil(sum(len(row.token_ids) for row in step.rows) / 2000))


def token_table(step: StepRows, minimum: int) -> list[TokenLine]:
    """Every token that occurs at least ``minimum`` times, by falling mean entropy."""
    texts: dict[int, str] = {}
    entropies: defaultdict[int, list[float]] = defaultdict(list)
    selected: defaultdict[int, list[bool]] = defaultdict(list)
    for row in step.rows:
        if not row.entropies:
            continue
        for token, text, h, kept in zip(
            row.token_ids, row.tokens, row.entropies, row.selected, strict=True
        ):
            if not is_number(h):
                continue
            texts[token] = text
            entropies[token].append(h)
            if row.accepted:
                selected[token].append(kept)
    lines = [
        TokenLine(
            token_id=token,
            text=texts[token],
            count=len(values),
            mean=float(np.mean(values)),
            p90=float(np.quantile(values, 0.9)),
            share_selected=float(np.mean(selected[token])) if selected[token] else None,
        )
        for token, values in entropies.items()
        if len(values) >= minimum
    ]
    return sorted(lines, key=lambda line: (-line.mean, line.token_id))
