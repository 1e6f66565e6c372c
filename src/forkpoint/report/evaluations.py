"""The section on right answers: every evaluation of every run, and how runs differ."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from forkpoint.figures.text import number, visible
from forkpoint.report.data import RunData
from forkpoint.report.finding import series_class, task_words
from forkpoint.report.intervals import Intervals, Row, intervals
from forkpoint.runs.evaluation import Benchmarks, Comparison, Evaluation
from forkpoint.runs.results import Estimate

SHOWN = 16
"""Lines of the matrix before it is unfolded."""


def evaluation_section(runs: Sequence[RunData]) -> dict[str, Any] | None:
    """Tables of intervals; None if nothing was evaluated."""
    rows = [row for index, run in enumerate(runs) for row in _evaluations(index, run)]
    paired = _paired(runs)
    if not rows and paired is None:
        return None
    return {
        "matrix": intervals(rows, share=True) if rows else None,
        "shown": SHOWN,
        "differences": _differences(runs),
        "paired": paired,
        "first": visible(runs[0].label),
    }


def _evaluations(index: int, run: RunData) -> Iterator[Row]:
    """Those in metrics.jsonl by step, then what ``forkpoint eval`` found, benchmarks last."""

    def row(
        task: str, step: str, accuracy: Estimate, samples: int | None, length: float | None
    ) -> Row:
        problems = f"{accuracy.n:,}" if accuracy.n else "–"
        drawn = "–" if samples is None else str(samples)
        cells = (visible(task), step, problems, drawn, number(length))
        return Row(visible(run.label), accuracy, series_class(index), cells)

    task = task_words(run.config) if run.config else "–"
    samples = run.config.evaluation.samples if run.config else None
    for one in run.evaluations:
        yield row(task, str(one.step), one.accuracy, samples, one.length_mean)
    found, benchmarks = run.result(Evaluation), run.result(Benchmarks)
    if found is not None:
        same = run.config is not None and run.config.task_name == found.task
        yield row(
            task if same else found.task, "–", found.accuracy, found.samples, found.length_mean
        )
    for one in benchmarks.benchmarks if benchmarks else ():
        yield row(one.name, "–", one.accuracy, one.samples, one.length_mean)


def _differences(runs: Sequence[RunData]) -> Intervals | None:
    """The last evaluation of each other run minus that of the first one."""
    last = [run.evaluations[-1:] for run in runs]
    rows = []
    for index, (run, found) in enumerate(zip(runs[1:], last[1:], strict=True), start=1):
        if found and last[0]:
            d = difference(found[0].accuracy, last[0][0].accuracy)
            problems = (f"{d.n:,}" if d.n else "–",)
            rows.append(Row(visible(run.label), d, series_class(index), problems))
    return intervals(rows, share=True, reference=0.0) if rows else None


def _paired(runs: Sequence[RunData]) -> Intervals | None:
    """What ``forkpoint eval --compare`` stored, in whichever run directory."""
    rows = [
        Row(visible(one.name), one.difference, cells=(first, second, f"{one.difference.n:,}"))
        for run in runs
        if (found := run.result(Comparison)) is not None
        for first, second in [(visible(Path(found.first).name), visible(Path(found.second).name))]
        for one in found.differences
    ]
    return intervals(rows, share=True, reference=0.0) if rows else None


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b with Newcombe's hybrid interval of independent proportions (1998, method 10).

    d - sqrt((a - a_low)^2 + (b_high - b)^2)  to  d + sqrt((a_high - a)^2 + (b - b_low)^2)
    """
    value, n = a.value - b.value, min(a.n, b.n)
    if a.interval is None or b.interval is None:
        return Estimate(value=value, low=None, high=None, n=n)
    (a_low, a_high), (b_low, b_high) = a.interval, b.interval
    return Estimate(
        value=value,
        low=value - math.hypot(a.value - a_low, b_high - b.value),
        high=value + math.hypot(a_high - a.value, b.value - b_low),
        n=n,
    )
