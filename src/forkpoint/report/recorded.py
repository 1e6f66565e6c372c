"""The sections on the first and the last recorded step of a training run."""

from collections.abc import Sequence
from typing import Any

from forkpoint.analysis.words import Word
from forkpoint.report import charts
from forkpoint.report.data import RunData
from forkpoint.report.steps import StepFile, profiles, token_table
from forkpoint.report.text import number
from forkpoint.report.tokens import COLOUR_EDGES
from forkpoint.report.words import shown

TABLE_LINES = 16


def histogram_section(run: RunData, files: Sequence[StepFile]) -> dict[str, Any] | None:
    """A histogram a step; ``figures`` is empty without entropies. None: nothing was trained."""
    if not run.trained:
        return None
    edges, found = profiles(files, dict(run.series("selection/threshold_nats")))
    most = max((max(profile.counts) for profile in found), default=0)
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


def tokens_section(run: RunData, files: Sequence[StepFile]) -> dict[str, Any] | None:
    """The tokens of highest and of lowest mean entropy in the last step.

    ``parts`` is empty if no token occurs often enough. None: nothing was trained.
    """
    if not run.trained:
        return None
    lines, least = token_table(files[-1]) if files else ([], 0)
    lowest = lines[TABLE_LINES:][-TABLE_LINES:][::-1]
    reach = max((line.p90 for line in lines), default=0.0)
    parts = (("Highest", lines[:TABLE_LINES]), ("Lowest", lowest))
    return {
        "step": files[-1].step if files else None,
        "least": least,
        "kinds": len(lines),
        "parts": [(title, [_line(o, reach) for o in part]) for title, part in parts if part],
    }


def _line(line: Word, reach: float) -> dict[str, Any]:
    return {
        "text": shown(line.text),
        "line": line,
        "chart": charts.mean_and_p90(line.mean, line.p90, reach),
    }
