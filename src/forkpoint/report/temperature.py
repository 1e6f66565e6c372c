"""The section on temperatures of forks and of the rest: a Temperature as figure and table."""

from collections.abc import Iterator
from typing import Any

from forkpoint.figures import paper
from forkpoint.figures.render import svg_for_page
from forkpoint.figures.text import ends, minus, number, percent, visible
from forkpoint.report.analysis import INTERRUPTED
from forkpoint.report.data import RunData
from forkpoint.runs.results import Estimate, Temperature


def temperature_section(run: RunData) -> dict[str, Any] | None:
    """Figure and table; ``empty`` says why there are none. None: it was not measured."""
    found = run.result(Temperature)
    if found is None:
        return {"empty": INTERRUPTED.format(Temperature.file)} if run.began(Temperature) else None
    chart = paper.temperature(found)
    if chart is None:
        return {"empty": "No point of the temperature sweeps is finished yet."}
    percentile = found.threshold_percentile
    return {
        "empty": None,
        "threshold": number(found.entropy_threshold),
        "percentile": None if percentile is None else f"{percentile:g}",
        "share": percent(found.share_above),
        "model": visible(found.model),
        "task": visible(found.task),
        "problems": found.problems,
        "samples": found.samples,
        "chart": svg_for_page(chart),
        "rows": list(_rows(found)),
    }


def _rows(found: Temperature) -> Iterator[dict[str, Any]]:
    for sweep in found.sweeps:
        for point in sorted(sweep.points, key=lambda p: p.temperature):
            accuracy = point.accuracy
            yield {
                "sweep": sweep.varied,
                "css": f"s{paper.SWEEPS[sweep.varied]}",
                "temperature": f"{point.temperature:g}",
                "accuracy": percent(accuracy.value),
                "ends": ends(*accuracy.interval) if accuracy.interval else "–",
                "difference": _difference(point.difference),
                "length": number(point.length_mean),
                "truncated": percent(point.truncated_fraction),
            }


def _difference(difference: Estimate | None) -> tuple[str, str]:
    """Against both parts at 1, on the same problems: ``−3.1``, ``[−5.0, −1.2]`` points."""
    if difference is None:
        return "–", ""
    between = [minus(f"{100 * v:+.1f}") for v in difference.interval or ()]
    return minus(f"{100 * difference.value:+.1f}"), f"[{', '.join(between)}]" if between else ""
