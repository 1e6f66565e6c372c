"""The section on training: the metrics of all runs over their steps, and what the steps cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from forkpoint.figures.curves import LONG, Series, curves
from forkpoint.figures.render import svg_for_page
from forkpoint.figures.text import number, percent, visible
from forkpoint.report.data import RunData
from forkpoint.report.finding import series_class


@dataclass(frozen=True, slots=True)
class Panel:
    """One small multiple."""

    title: str
    metric: str
    unit: str
    share: bool = False
    instead: "Panel | None" = None
    """Drawn where no run has the metric."""


KEPT = Panel("Tokens selected", "selection/kept_fraction", "share of the pool", share=True)
TOKENS_SAVED = Panel("Work saved", "work/tokens_saved_fraction", "share of tokens", share=True)
PANELS = (
    Panel("Reward", "reward/mean", "mean of a step"),
    Panel("Held-out accuracy", "eval/accuracy", "share right", share=True),
    Panel("Entropy, mean", "entropy/mean", "nats"),
    Panel("Entropy, 80th percentile", "entropy/p80", "nats"),
    Panel("Answer length", "completion/length_mean", "tokens, mean"),
    Panel("Entropy threshold", "selection/threshold_nats", "nats", instead=KEPT),
    Panel("Gradient norm", "grad/norm", "before clipping"),
    Panel(
        "Work saved",
        "work/flops_saved_fraction",
        "share of the operations",
        share=True,
        instead=TOKENS_SAVED,
    ),
)


def training_section(runs: Sequence[RunData]) -> dict[str, Any] | None:
    """Panels, key and costs; None if nothing was trained."""
    if not any(run.trained for run in runs):
        return None
    return {
        "panels": list(_panels(runs)),
        "runs": [(visible(run.label), series_class(i)) for i, run in enumerate(runs)],
        "long": any(len(run.metrics) > LONG for run in runs),
        "work": work_table(runs),
    }


def _panels(runs: Sequence[RunData]) -> Iterator[dict[str, Any]]:
    """Each panel with its chart, or with None if no run has the metric."""
    steps = [int(line.get("step") or 0) for run in runs for line in run.metrics]
    for panel in PANELS:
        series = _series(runs, panel)
        if not series and panel.instead:
            panel = panel.instead
            series = _series(runs, panel)
        chart = None
        if series:
            axis = (min(steps), max(steps))
            chart = svg_for_page(curves(panel.title, series, steps=axis, share=panel.share))
        yield {"panel": panel, "chart": chart}


def _series(runs: Sequence[RunData], panel: Panel) -> list[Series]:
    """Of the runs that have the metric."""
    found = []
    for index, run in enumerate(runs):
        low, high = (dict(run.series(f"{panel.metric}_{end}")) for end in ("low", "high"))
        one = Series(
            label=visible(run.label),
            index=index,
            points=run.series(panel.metric),
            band=[(step, low[step], high[step]) for step in sorted(low.keys() & high.keys())],
        )
        if one.points:
            found.append(one)
    return found


# ---- work ---------------------------------------------------------------------------------------


def work_table(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """One line a run, with a dash for what it did not log; empty if no run logged anything."""
    rows = [_totals(run) for run in runs]
    return rows if any(row["known"] for row in rows) else []


def _totals(run: RunData) -> dict[str, Any]:
    body, head, flops, dense = (
        _sum(run, f"work/{name}") for name in ("body_tokens", "head_rows", "flops", "dense_flops")
    )
    memory = _most(run, "memory/peak_gb")
    device = _most(run, "memory/cuda_peak_gb")
    return {
        "label": visible(run.label),
        "known": any(value is not None for value in (body, head, flops, memory)),
        "body": _count(body),
        "head": _count(head),
        "flops": number(flops),
        "dense": number(dense),
        "saved": percent(saved_share(run)),
        "memory": ("–" if memory is None else f"{memory:.2f} GB")
        + ("" if device is None else f", CUDA {device:.2f} GB"),
    }


def saved_share(run: RunData) -> float | None:
    """1 - sum of flops / sum of dense flops, over the steps that logged both.

    Without flops: the same of body tokens, whose dense number of a step is
    ``work/body_tokens`` / (1 - ``work/tokens_saved_fraction``).
    """
    done, dense = dict(run.series("work/flops")), dict(run.series("work/dense_flops"))
    if not done.keys() & dense.keys():
        done, fractions = (
            dict(run.series(f"work/{name}")) for name in ("body_tokens", "tokens_saved_fraction")
        )
        dense = {s: done[s] / (1 - f) for s, f in fractions.items() if s in done and f < 1}
    steps = done.keys() & dense.keys()
    total = sum(dense[step] for step in steps)
    return 1 - sum(done[step] for step in steps) / total if total else None


def _sum(run: RunData, name: str) -> float | None:
    values = [value for _, value in run.series(name)]
    return sum(values) if values else None


def _most(run: RunData, name: str) -> float | None:
    return max((value for _, value in run.series(name)), default=None)


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
