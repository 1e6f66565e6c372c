"""The section on training: the metrics of all runs over their steps, and what the steps cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from forkpoint.figures.curves import LONG, Series, curves
from forkpoint.figures.render import svg_for_page
from forkpoint.figures.text import visible
from forkpoint.report.data import RunData
from forkpoint.report.finding import series_class
from forkpoint.report.work import work_table


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
