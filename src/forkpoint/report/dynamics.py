"""The section on what training does to the pattern of entropy: analysis/dynamics.json."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from forkpoint.report.curves import Series, curve_chart
from forkpoint.report.data import RunData
from forkpoint.report.forest import ends
from forkpoint.report.json_file import JsonObject
from forkpoint.report.plots import (
    UP,
    Guide,
    Point,
    Ticks,
    Trace,
    across,
    linear,
    plot,
    symmetric_log,
)
from forkpoint.report.svg import Scale
from forkpoint.report.text import number, percent, visible
from forkpoint.runs.results import Estimate

LINEAR_NATS = 1e-4
"""Changes smaller than this are drawn on a linear piece of the axis; the paper's axis ends here."""


def dynamics_section(run: RunData) -> dict[str, Any] | None:
    """The figures; ``empty`` says why there are none. None: it was not measured."""
    dynamics = run.analysis("dynamics")
    if dynamics is None:
        interrupted = run.interrupted("dynamics")
        return {"empty": interrupted} if interrupted else None
    checkpoints = dynamics.objects("checkpoints")
    if not checkpoints or dynamics.whole("tokens") == 0:
        return {"empty": "The dynamics hold 0 tokens or no checkpoint, so nothing is drawn."}
    steps, x_name = _steps(checkpoints)
    base, final = (_column(dynamics, f"overlap_with_{end}", steps) for end in ("base", "final"))
    return {
        "empty": None,
        "tokens": dynamics.whole("tokens"),
        "prompts": dynamics.whole("prompts"),
        "share": 100 * dynamics.number("keep_fraction"),
        "overlap": _overlap(steps, x_name, base, final, dynamics.number("keep_fraction")),
        "table": [
            (visible(c.text("name")), *(_cell(column[i]) for column in (base, final)))
            for i, c in enumerate(checkpoints)
        ],
        "change": _change(dynamics),
        "panels": list(_percentile_panels(dynamics, steps)),
        "x_name": x_name,
    }


def _steps(checkpoints: Sequence[JsonObject]) -> tuple[list[int], str]:
    """Where each checkpoint stands: at its step if all have one, else in the order given."""
    known = [c.number_or_none("step") for c in checkpoints]
    steps = [round(s) for s in known if s is not None]
    if len(steps) == len(known) and all(a < b for a, b in pairwise(steps)):
        return steps, "step"
    return list(range(len(known))), "checkpoint, in the order given"


def _column(dynamics: JsonObject, name: str, steps: Sequence[int]) -> list[Estimate | None]:
    column = dynamics.estimates(name)
    if len(column) != len(steps):
        raise dynamics.fault(name, "needs one entry for each checkpoint")
    return column


def _cell(estimate: Estimate | None) -> tuple[str, str]:
    if estimate is None:
        return "–", ""
    return percent(estimate.value), ends(estimate.low, estimate.high)


# ---- Table 1 and figure 4 -----------------------------------------------------------------------


def _overlap(
    steps: Sequence[int],
    x_name: str,
    base: Sequence[Estimate | None],
    final: Sequence[Estimate | None],
    chance: float,
) -> Markup:
    pairs = (("with the base", "s0", base), ("with the final", "s1", final))
    traces = [
        Trace(
            css=css,
            name=name,
            points=[
                Point(
                    step,
                    e.value,
                    f"{x_name.split(',')[0]} {step}: {percent(e.value)} "
                    f"{ends(e.low, e.high)} shared {name}",
                    e.low,
                    e.high,
                )
                for step, e in zip(steps, column, strict=True)
                if e is not None
            ],
        )
        for name, css, column in pairs
    ]
    x, x_ticks = step_axis(steps)
    y, y_ticks = linear([0.0, 1.0], UP, share=True)
    words = (f"{t.name} {percent(t.points[-1].y)} at the end" for t in traces if t.points)
    return plot(
        "Share of the top positions that are shared: " + "; ".join(words),
        traces,
        x,
        y,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        x_name=x_name,
        guides=[Guide(chance, f"chance {percent(chance)}")],
    )


def step_axis(steps: Sequence[int]) -> tuple[Scale, Ticks]:
    """A linear axis over the checkpoints, with whole numbers at its ticks."""
    if steps[0] == steps[-1]:
        return Scale(steps[0] - 1, steps[0] + 1, *across(named=True)), Ticks(
            steps[:1], [f"{steps[0]}"]
        )
    x, marks = linear([float(steps[0]), float(steps[-1])], across(named=True))
    whole = [v for v in marks.values if v == round(v)]
    return x, Ticks(whole, [f"{v:,.0f}" for v in whole])


def _change(dynamics: JsonObject) -> Markup | None:
    """Mean change of entropy in each bin of base entropy, with intervals."""
    bins = [b for b in dynamics.objects("change_by_bin") if b.number_or_none("mean") is not None]
    if not bins:
        return None
    points = []
    for b in bins:
        mean, low, high = b.number("mean"), b.number_or_none("low"), b.number_or_none("high")
        span = f"{b.number('from_percentile'):g} to {b.number('to_percentile'):g} %"
        nats = f"base {number(b.number('from_nats'))} to {number(b.number('to_nats'))} nats"
        middle = (b.number("from_percentile") + b.number("to_percentile")) / 2
        title = f"{span} ({nats}): {number(mean)} nats"
        if low is not None and high is not None:
            title += f" [{number(low)}, {number(high)}]"
        points.append(Point(middle, mean, f"{title}, {b.whole('tokens'):,} tokens", low, high))
    reach = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    x, x_ticks = linear([0.0, 100.0], across(), most=6)
    y, y_ticks = symmetric_log(reach, UP, LINEAR_NATS)
    return plot(
        "Change of entropy from the base to the final checkpoint, by base entropy: "
        f"{number(points[0].y)} nats in the lowest bin, {number(points[-1].y)} in the highest",
        [Trace(points=points, css="plain unjoined")],
        x,
        y,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        x_name="percentile of base entropy",
        guides=[Guide(0.0, "")],
    )


# ---- figure 5 -----------------------------------------------------------------------------------


def _percentile_panels(dynamics: JsonObject, steps: Sequence[int]) -> list[tuple[str, Markup]]:
    """(name, chart) of each percentile against the steps, in small multiples."""
    node = dynamics.object("percentiles")
    panels = []
    for name in sorted(node.fields, key=float):
        values = node.numbers(name)
        if len(values) != len(steps):
            raise node.fault(name, "needs one number for each checkpoint")
        title = f"{name}th percentile"
        series = Series(label=title, index=0, points=list(zip(steps, values, strict=True)))
        panels.append((title, curve_chart(title, [series], steps=(steps[0], steps[-1]))))
    return panels
