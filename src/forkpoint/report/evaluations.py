"""The section on right answers: every evaluation of every run, and how runs or arms differ."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from forkpoint.report.data import RunData
from forkpoint.report.finding import evaluated, setting, task_words
from forkpoint.report.forest import ForestRow, forest
from forkpoint.report.json_file import JsonObject, is_number
from forkpoint.report.svg import series_style
from forkpoint.report.text import number, visible
from forkpoint.runs.results import Estimate

SHOWN = 16
"""Lines of the matrix before it is unfolded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """One evaluation of one run."""

    run: str
    task: str
    step: str
    accuracy: Estimate
    samples: int | None
    """Per problem."""
    length: float | None
    css: str


def evaluation_section(runs: Sequence[RunData]) -> dict[str, Any] | None:
    """The matrix and the forest plots; None if nothing was evaluated."""
    rows = [row for index, run in enumerate(runs) for row in _evaluations(index, run)]
    arms = _arms(runs[0])
    if not rows and arms is None:
        return None
    return {"matrix": _matrix(rows), "differences": _differences(runs), "arms": arms}


def _evaluations(index: int, run: RunData) -> Iterator[Evaluated]:
    """Those in metrics.jsonl by step, then the one in eval/summary.json."""
    task, css = task_words(run.config) if run.config else "–", series_style(index)
    samples = setting(run.config, "evaluation.samples")
    for line, accuracy in evaluated(run):
        length = line.get("eval/length_mean")
        yield Evaluated(
            run=run.label,
            task=task,
            step=str(int(line["step"])),
            accuracy=accuracy,
            samples=int(samples) if is_number(samples) else None,
            length=length if is_number(length) else None,
            css=css,
        )
    summary = JsonObject.read(run.root / "eval" / "summary.json")
    if summary is not None:
        yield Evaluated(
            run=run.label,
            task=task,
            step="–",
            accuracy=summary.estimate("accuracy"),
            samples=summary.whole("samples"),
            length=summary.number_or_none("length_mean"),
            css=css,
        )


def _matrix(rows: Sequence[Evaluated]) -> dict[str, Any] | None:
    if not rows:
        return None
    drawn = forest(
        [
            ForestRow(
                label=visible(row.run),
                value=row.accuracy.value,
                low=row.accuracy.low,
                high=row.accuracy.high,
                css=row.css,
                cells=(
                    visible(row.task),
                    row.step,
                    f"{row.accuracy.n:,}" if row.accuracy.n else "–",
                    "–" if row.samples is None else f"{row.samples}",
                    number(row.length),
                ),
            )
            for row in rows
        ],
        share=True,
    )
    return {"forest": drawn, "shown": SHOWN}


# ---- differences --------------------------------------------------------------------------------


def _differences(runs: Sequence[RunData]) -> dict[str, Any] | None:
    """The last evaluation of each other run minus that of the first one."""
    last = [(i, run, found[-1][1]) for i, run in enumerate(runs) if (found := list(evaluated(run)))]
    if len(last) < 2 or last[0][0] != 0:
        return None
    (_, first, baseline), *others = last
    rows = []
    for index, run, accuracy in others:
        d = difference(accuracy, baseline)
        rows.append(
            ForestRow(
                label=visible(run.label),
                value=d.value,
                low=d.low,
                high=d.high,
                css=series_style(index),
                cells=(f"{d.n:,}" if d.n else "–",),
            )
        )
    return {
        "forest": forest(rows, share=True, reference=0.0),
        "columns": ("Problems",),
        "first": visible(first.label),
    }


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b with Newcombe's hybrid interval of independent proportions (1998, method 10).

    d - sqrt((a - a_low)^2 + (b_high - b)^2)  to  d + sqrt((a_high - a)^2 + (b - b_low)^2)
    """
    value = a.value - b.value
    return Estimate(
        value=value,
        low=value - math.hypot(a.value - a.low, b.high - b.value),
        high=value + math.hypot(a.high - a.value, b.value - b.low),
        n=min(a.n, b.n),
    )


def _arms(run: RunData) -> dict[str, Any] | None:
    """The arms of ablation.json, in its order."""
    stored = JsonObject.read(run.root / "ablation.json")
    arms = stored.objects("arms") if stored is not None else []
    if not arms:
        return None
    rows = []
    for arm in arms:
        estimate = arm.estimate()
        seeds = arm.fields.get("seeds")
        count = len(seeds) if isinstance(seeds, list) else seeds
        rows.append(
            ForestRow(
                label=visible(arm.text("label")),
                value=estimate.value,
                low=estimate.low,
                high=estimate.high,
                cells=(f"{estimate.n:,}", "–" if count is None else visible(str(count))),
            )
        )
    zero = 0.0 if any(row.low < 0 for row in rows) else None
    return {
        "forest": forest(rows, share=True, reference=zero),
        "columns": ("n", "Seeds"),
        "zero": zero is not None,
    }
