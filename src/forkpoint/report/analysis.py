"""The section on where entropy is: analysis/summary.json as figures."""

from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from forkpoint.report import charts
from forkpoint.report.data import RunData
from forkpoint.report.finding import what_was_analysed
from forkpoint.report.forest import SLIM, ForestRow, forest
from forkpoint.report.json_file import JsonObject
from forkpoint.report.plots import UP, Guide, Point, Ticks, Trace, across, linear, plot
from forkpoint.report.svg import Axis, SymlogScale, symlog
from forkpoint.report.text import number, percent, visible
from forkpoint.report.tokens import COLOUR_EDGES

INTERRUPTED = (
    "analysis/summary.json is not there: the analysis was interrupted. "
    "The same command goes on where it stopped."
)
NO_TOKENS = "The analysis holds 0 tokens, so there is nothing to draw."


def analysis_section(run: RunData) -> dict[str, Any] | None:
    """The figures; ``empty`` says in a sentence why there are none. None: nothing was analysed."""
    summary = run.analysis("summary")
    if summary is None:
        begun = (run.analysis_dir / "config.json").exists() or any(
            (run.root / "completions/analysis").glob("part_*.parquet")
        )
        return {"empty": INTERRUPTED} if begun else None
    if summary.whole("tokens") == 0:
        return {"empty": NO_TOKENS}
    return {
        "empty": None,
        "sentence": visible(what_was_analysed(summary)) if run.trained else None,
        "histogram": _histogram(summary),
        "percentiles": _percentile_curve(summary),
        "facts": list(_facts(summary)),
        "by_position": _by(summary, "by_position", "position in the answer", "tokens"),
        "by_length": _by(summary, "by_length", "tokens of the answer", "completions"),
        "by_correctness": _by_correctness(summary),
        "truth": list(_truth(summary)),
    }


# ---- figures ------------------------------------------------------------------------------------


def _histogram(summary: JsonObject) -> Markup | None:
    bins = summary.object("histogram")
    counts, edges = [round(c) for c in bins.numbers("counts")], bins.numbers("edges")
    if not counts or len(edges) != len(counts) + 1:
        raise summary.fault("histogram", "needs one edge more than counts")
    percentiles = summary.object("percentiles")
    marks = [(f"p{q}", percentiles.number(q)) for q in ("50", "80", "95")]
    threshold = summary.number_or_none("threshold_nats")
    if threshold is not None:
        marks.append(("threshold", threshold))
    return charts.histogram_chart(
        counts,
        edges,
        most=max(counts),
        marks=marks,
        colour_edges=COLOUR_EDGES,
        label=f"Histogram of the entropies of {summary.whole('tokens')} tokens",
    )


def _percentile_curve(summary: JsonObject) -> Markup:
    percentiles = summary.object("percentiles")
    points = [
        Point(float(q), value, f"{q} % of the tokens have at most {number(value)} nats")
        for q in sorted(percentiles.fields, key=float)
        if (value := percentiles.number_or_none(q)) is not None
    ]
    y, y_ticks = linear([0.0, *(p.y for p in points)], UP)
    x, x_ticks = linear([0.0, 100.0], across(), most=6)
    threshold = summary.number_or_none("threshold_nats")
    guides = [Guide(threshold, f"threshold {number(threshold)}")] if threshold is not None else []
    return plot(
        "Entropy in nats against the percentile of tokens, "
        f"up to {number(max(p.y for p in points))} nats",
        [Trace(points=points, css="plain")],
        x,
        y,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        x_name="percentile of tokens",
        guides=guides,
    )


def _by(summary: JsonObject, name: str, x_name: str, what: str) -> Markup | None:
    """Mean entropy of the bins of ``name``, drawn at their middles."""
    bins = [b for b in summary.objects(name) if b.number_or_none("mean") is not None]
    if not bins:
        return None
    points = [
        Point(
            x=(b.number("from") + b.number("to")) / 2,
            y=b.number("mean"),
            title=f"{b.whole('from')} to {b.whole('to')}: {number(b.number('mean'))} nats, "
            f"{b.whole(what):,} {what}",
        )
        for b in bins
    ]
    x, x_ticks = _position_axis([b.number("to") - b.number("from") for b in bins], points)
    y, y_ticks = linear([0.0, *(p.y for p in points)], UP)
    label = f"Mean entropy in nats against {x_name}, in {len(points)} bins"
    log = " (logarithmic)" if isinstance(x, SymlogScale) else ""
    return plot(
        label,
        [Trace(points=points, css="plain")],
        x,
        y,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        x_name=x_name + log,
    )


def _position_axis(widths: list[float], points: list[Point]) -> tuple[Axis, Ticks]:
    """Linear, or logarithmic from the first bin's width on where bins grow."""
    values = [p.x for p in points]
    if max(widths) <= 2 * max(widths[0], 1.0):
        return linear([0.0, *values], across())
    threshold = max(1.0, widths[0])
    x = SymlogScale(0.0, max(values), *across(), threshold)
    powers = [10.0**k for k in range(1, 8) if threshold < 10.0**k <= max(values)]
    far = [v for v in powers if symlog(v, threshold) > 0.3]
    return x, Ticks([0.0, *far], [f"{v:,.0f}" for v in (0.0, *far)])


def _by_correctness(summary: JsonObject) -> dict[str, Any] | None:
    groups = [g for g in summary.objects("by_correctness") if g.number_or_none("mean") is not None]
    if not groups:
        return None
    rows = [
        ForestRow(
            label=visible(group.text("label")),
            value=group.number("mean"),
            low=_or(group.number_or_none("low"), group.number("mean")),
            high=_or(group.number_or_none("high"), group.number("mean")),
            cells=(f"{group.whole('completions'):,}", f"{group.whole('tokens'):,}"),
        )
        for group in groups
    ]
    return {"forest": forest(rows, width=SLIM), "columns": ("Answers", "Tokens")}


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


# ---- numbers ------------------------------------------------------------------------------------


def _facts(summary: JsonObject) -> Iterator[tuple[str, str]]:
    """(number, what it is), the large figures under the histogram."""
    yield f"{number(summary.number('mean_entropy_nats'))} nats", "mean entropy"
    yield percent(summary.number("share_below_0.01")), "of tokens below 0.01 nats"
    keep = summary.number("keep_fraction")
    yield (
        percent(summary.number("entropy_share_of_top")),
        f"of all entropy is in the top {100 * keep:.3g}\u00a0% of tokens",
    )
    threshold = summary.number_or_none("threshold_nats")
    if threshold is not None:
        kept = percent(summary.number("kept_fraction"))
        yield f"{number(threshold)} nats", f"threshold; {kept} of tokens reach it"
    if summary.fields.get("accuracy"):
        accuracy = summary.estimate("accuracy")
        yield (
            percent(accuracy.value),
            f"right [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}], n = {accuracy.n}",
        )


TRUTH = (
    ("fork_precision", "precision", "share of the top tokens that are true decisions", True),
    ("fork_recall", "recall", "share of the true decisions that are top tokens", True),
    ("fork_average_precision", "average precision", "over all cuts; chance: the next line", True),
    ("fork_share", "true decisions", "share of all tokens", True),
    ("forks_true_nats", "entropy of true decisions", "analytic, mean in nats", False),
    ("forks_measured_nats", "the same", "measured, mean in nats", False),
    ("forced_measured_nats", "entropy of forced tokens", "measured; analytic: 0 nats", False),
    ("entropy_error_vs_analytic_nats", "entropy error", "mean |measured − analytic|, nats", False),
)  # fmt: skip
"""(key, name, what it is, whether it is a share)."""


def _truth(summary: JsonObject) -> Iterator[tuple[str, str, str]]:
    """(value, name, what it is): what only the laboratory world can know."""
    for key, name, meaning, share in TRUTH:
        value = summary.number_or_none(key)
        if value is not None:
            yield percent(value) if share else number(value), name, meaning
