"""The section on decoding temperatures of forks and of the rest: analysis/temperature.json."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from forkpoint.report.data import RunData
from forkpoint.report.forest import ends
from forkpoint.report.json_file import JsonObject
from forkpoint.report.plots import UP, Point, Ticks, Trace, across, linear, plot
from forkpoint.report.svg import SymlogScale
from forkpoint.report.text import number, percent, visible

LINEAR_TEMPERATURE = 0.2
"""The axis is linear up to here and logarithmic beyond, as in the paper's figure 3."""

SWEEPS = {"forks": ("forks", "s1"), "rest": ("rest", "s0")}


def temperature_section(run: RunData) -> dict[str, Any] | None:
    """Figure and table; ``empty`` says why there are none. None: it was not measured."""
    stored = run.analysis("temperature")
    if stored is None:
        interrupted = run.interrupted("temperature")
        return {"empty": interrupted} if interrupted else None
    sweeps = [s for s in stored.objects("sweeps") if s.objects("points")]
    if not sweeps:
        return {"empty": "No point of the temperature sweeps is finished yet."}
    percentile = stored.number_or_none("threshold_percentile")
    share = stored.number_or_none("share_above")
    return {
        "empty": None,
        "threshold": number(stored.number("threshold_nats")),
        "percentile": None if percentile is None else f"{percentile:g}",
        "share": None if share is None else percent(share),
        "model": visible(stored.text("model")),
        "task": visible(stored.text("task")),
        "problems": stored.whole("problems"),
        "samples": stored.whole("samples"),
        "chart": _chart(sweeps),
        "rows": list(_rows(sweeps)),
    }


def _chart(sweeps: Sequence[JsonObject]) -> Markup:
    traces = [_trace(sweep, shift=3.0 * i - 1.5) for i, sweep in enumerate(sweeps)]
    points = [p for trace in traces for p in trace.points]
    temperatures = sorted({p.x for p in points})
    x = SymlogScale(0.0, max(1.0, *temperatures), *across(named=True), LINEAR_TEMPERATURE)
    reach = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    y, y_ticks = linear(reach, UP, share=True)
    return plot(
        "Accuracy against temperature: " + "; ".join(_in_words(trace) for trace in traces),
        traces,
        x,
        y,
        x_ticks=_apart(temperatures, x),
        y_ticks=y_ticks,
        x_name="temperature of the varied part (linear to 0.2, then logarithmic)",
    )


def _trace(sweep: JsonObject, *, shift: float) -> Trace:
    name, css = SWEEPS.get(sweep.text("varied"), (visible(sweep.text("varied")), "s2"))
    points = []
    for point in sweep.objects("points"):
        accuracy, temperature = point.estimate("accuracy"), point.number("temperature")
        interval = ends(accuracy.low, accuracy.high)
        title = f"{name}, temperature {temperature:g}: {percent(accuracy.value)} {interval}"
        points.append(Point(temperature, accuracy.value, title, accuracy.low, accuracy.high))
    points.sort(key=lambda p: p.x)
    return Trace(points=points, css=css, name=f"{name} varied", shift=shift)


def _in_words(trace: Trace) -> str:
    first, last = trace.points[0], trace.points[-1]
    return f"{trace.name} from {percent(first.y)} at {first.x:g} to {percent(last.y)} at {last.x:g}"


def _apart(temperatures: Sequence[float], x: SymlogScale) -> Ticks:
    """The temperatures whose texts have room."""
    kept: list[float] = []
    for value in temperatures:
        if not kept or x(value) - x(kept[-1]) >= 20:
            kept.append(value)
    return Ticks(kept, [f"{v:g}" for v in kept])


def _rows(sweeps: Sequence[JsonObject]) -> list[dict[str, Any]]:
    rows = []
    for sweep in sweeps:
        name, css = SWEEPS.get(sweep.text("varied"), (visible(sweep.text("varied")), "s2"))
        for point in sorted(sweep.objects("points"), key=lambda p: p.number("temperature")):
            accuracy = point.estimate("accuracy")
            truncated = point.number_or_none("truncated_fraction")
            rows.append(
                {
                    "sweep": name,
                    "css": css,
                    "temperature": f"{point.number('temperature'):g}",
                    "accuracy": percent(accuracy.value),
                    "ends": ends(accuracy.low, accuracy.high),
                    "difference": _difference(point),
                    "length": number(point.number_or_none("length_mean")),
                    "truncated": percent(truncated),
                }
            )
    return rows


def _difference(point: JsonObject) -> tuple[str, str]:
    """Against both parts at 1, on the same problems: ``−3.1``, ``[−5.0, −1.2]`` points."""
    if not isinstance(point.fields.get("difference"), dict):
        return "–", ""
    d = point.estimate("difference")
    value, low, high = (f"{100 * v:+.1f}".replace("-", "−") for v in (d.value, d.low, d.high))
    return value, f"[{low}, {high}]"
