"""From run directories to one HTML page."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from forkpoint.report import charts
from forkpoint.report.charts import Interval
from forkpoint.report.curves import LONG, Series, curve_chart
from forkpoint.report.data import (
    RunData,
    StepRows,
    TokenLine,
    first_and_last,
    load_runs,
    minimum_count,
    profiles,
    token_table,
)
from forkpoint.report.finding import Finding, findings, what_was_trained
from forkpoint.report.provenance import differences, provenance
from forkpoint.report.text import number, percent, script_json, visible
from forkpoint.report.tokens import COLOUR_EDGES, choose, payload
from forkpoint.runs.atomic import write_text

TABLE_LINES = 16


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
PANELS = (
    Panel("Reward", "reward/mean", "mean of a step"),
    Panel("Held-out accuracy", "eval/accuracy", "share right", share=True),
    Panel("Entropy, mean", "entropy/mean", "nats"),
    Panel("Entropy, 80th percentile", "entropy/p80", "nats"),
    Panel("Answer length", "completion/length_mean", "tokens, mean"),
    Panel("Entropy threshold", "selection/threshold_nats", "nats", instead=KEPT),
    Panel("Gradient norm", "grad/norm", "before clipping"),
    Panel("Work saved", "work/tokens_saved_fraction", "share of tokens", share=True),
)


def build_report(runs: Sequence[Path], out: Path, *, completions: int = 60) -> Path:
    """Write one page that needs no network, about run directories.

    The first run is the page's subject: histogram, tokens and completions are of its first and
    last recorded step. All runs, and a demo's ``control/``, are drawn in the curves.

    Args:
        out: the page; written whole or not at all.
        completions: how many to show at most.

    Returns:
        ``out``.

    Raises:
        RunError: no run directory, no metrics.jsonl in it, a file that cannot be read, or ``out``
            cannot be written.
    """
    loaded = load_runs(runs)
    write_text(out, render(loaded, first_and_last(loaded[0]), completions))
    return out


def render(runs: Sequence[RunData], steps: Sequence[StepRows], completions: int) -> str:
    """The page's HTML; free of lone surrogates, so that it can be encoded."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("forkpoint.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "visible": visible}
    style, script = (_asset(environment, name) for name in ("report.css", "report.js"))
    main = runs[0]
    groups = choose(steps, completions)
    return environment.get_template("report.html.j2").render(
        policy=content_security_policy(style, script),
        style=style,
        script=script,
        title=visible(main.label),
        runs=[(visible(run.label), charts.key_line(i), run) for i, run in enumerate(runs)],
        sentence=visible(what_was_trained(main)),
        missing=[visible(text) for text in missing(main, steps)],
        finding=_finding(findings(runs)),
        panels=list(_panels(runs)),
        long=any(len(run.metrics) > LONG for run in runs),
        histogram=_histogram(main, steps),
        table=_table(steps),
        recorded=[step.step for step in steps],
        shown=sum(len(group.shown) for group in groups),
        sampled=sum(len(step.rows) for step in steps),
        legend=_legend(),
        payload=script_json(payload(groups, steps)),
        provenance=[provenance(run) for run in runs],
        differences=differences(runs),
    )


def _asset(environment: jinja2.Environment, name: str) -> Markup:
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def content_security_policy(style: str, script: str) -> str:
    """Nothing may be loaded, and only this style and this script may run, by their hashes."""

    def source(text: str) -> str:
        digest = hashlib.sha256(text.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    return (
        f"default-src 'none'; style-src {source(style)}; script-src {source(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def missing(run: RunData, steps: Sequence[StepRows]) -> Iterator[str]:
    """What the run directory lacks, and what the page therefore lacks."""
    if not run.metrics:
        yield "metrics.jsonl is empty: no step has been made yet."
    if not run.config:
        yield "There is no config.json, so the page cannot say what was trained."
    if not run.environment:
        yield "There is no env.json, so versions and command are unknown."
    if not steps:
        yield "There are no rollouts, so the page has no histogram, tokens or completions."
    elif not any(len(step.entropies()) for step in steps):
        yield (
            "The rollouts hold no entropies: the engine that sampled them does not see whole "
            "distributions. Completions are shown without colours."
        )


# ---- figures ------------------------------------------------------------------------------------


def _finding(rows: Sequence[Finding]) -> dict[str, Any] | None:
    if not rows:
        return None
    intervals = [
        Interval(
            label=visible(row.label),
            value=row.estimate.value,
            low=row.estimate.low,
            high=row.estimate.high,
            series=row.series,
        )
        for row in rows
    ]
    return {
        "sizes": sorted({row.estimate.n for row in rows}),
        "wide": charts.interval_chart(intervals, narrow=False),
        "narrow": charts.interval_chart(intervals, narrow=True),
    }


def _panels(runs: Sequence[RunData]) -> Iterator[dict[str, Any]]:
    """Each panel with its chart, or with None if no run has the metric."""
    steps = [int(line["step"]) for run in runs for line in run.metrics if "step" in line]
    for panel in PANELS:
        series = _series(runs, panel)
        if not series and panel.instead:
            panel = panel.instead
            series = _series(runs, panel)
        chart = None
        if series:
            axis = (min(steps), max(steps))
            chart = curve_chart(panel.title, series, steps=axis, share=panel.share)
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


def _histogram(run: RunData, steps: Sequence[StepRows]) -> dict[str, Any] | None:
    edges, found = profiles(run, steps)
    if not found:
        return None
    most = max(max(profile.counts) for profile in found)
    figures = []
    for profile in found:
        marks = [("p50", profile.p50), ("p80", profile.p80), ("p95", profile.p95)]
        if profile.threshold is not None:
            marks.append(("threshold", profile.threshold))
        chart = charts.histogram_chart(
            profile.counts,
            [float(e) for e in edges],
            most=most,
            marks=marks,
            colour_edges=COLOUR_EDGES,
            label=f"Histogram of the entropies of {profile.tokens} tokens of step {profile.step}",
        )
        figures.append((profile, chart))
    return {"figures": figures, "width": number(float(edges[1] - edges[0]))}


def _legend() -> list[str]:
    """What each token colour stands for, in nats."""
    inner = [f"{a:g}–{b:g}" for a, b in pairwise(COLOUR_EDGES)]
    return [f"< {COLOUR_EDGES[0]:g}", *inner, f"≥ {COLOUR_EDGES[-1]:g}"]


def _table(steps: Sequence[StepRows]) -> dict[str, Any] | None:
    """The tokens of highest and of lowest mean entropy in the last recorded step."""
    if not steps:
        return None
    least = minimum_count(steps[-1])
    lines = token_table(steps[-1], least)
    if not lines:
        return None
    lowest = lines[TABLE_LINES:][-TABLE_LINES:][::-1]
    reach = max(line.p90 for line in lines)
    return {
        "step": steps[-1].step,
        "least": least,
        "kinds": len(lines),
        "parts": [
            ("Highest", [_table_line(line, reach) for line in lines[:TABLE_LINES]]),
            ("Lowest", [_table_line(line, reach) for line in lowest]),
        ],
    }


def _table_line(line: TokenLine, reach: float) -> dict[str, Any]:
    text = visible(line.text, newline="↵")
    return {
        "text": text.replace(" ", "␣"),
        "line": line,
        "chart": charts.mean_and_p90(line.mean, line.p90, reach),
    }
