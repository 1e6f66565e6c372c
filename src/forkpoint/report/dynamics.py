"""The section on what training does to entropies: a Dynamics as figures and a table."""

from typing import Any

from forkpoint.figures import paper
from forkpoint.figures.render import svg_for_page
from forkpoint.figures.text import ends, percent, visible
from forkpoint.report.analysis import INTERRUPTED
from forkpoint.report.data import RunData
from forkpoint.runs.results import Dynamics, Estimate


def dynamics_section(run: RunData) -> dict[str, Any] | None:
    """The figures; ``empty`` says why there are none. None: it was not measured."""
    found = run.result(Dynamics)
    if found is None:
        return {"empty": INTERRUPTED.format(Dynamics.file)} if run.began(Dynamics) else None
    if not found.checkpoints or found.tokens == 0:
        return {"empty": "The dynamics hold 0 tokens or no checkpoint, so nothing is drawn."}
    change = paper.change_by_bin(found)
    return {
        "empty": None,
        "tokens": found.tokens,
        "prompts": found.prompts,
        "share": 100 * found.keep_fraction,
        "overlap": svg_for_page(paper.overlap(found)),
        "table": [
            (visible(c.name), _cell(c.overlap_with_base), _cell(c.overlap_with_final))
            for c in found.checkpoints
        ],
        "change": change and svg_for_page(change),
        "panels": [
            (f"{q}th percentile", svg_for_page(paper.entropy_at_percentile(found, q)))
            for q in sorted(found.checkpoints[-1].percentiles)
        ],
        "x_name": paper.steps_of(found)[1],
    }


def _cell(estimate: Estimate | None) -> tuple[str, str]:
    if estimate is None:
        return "–", ""
    return percent(estimate.value), ends(*estimate.interval) if estimate.interval else ""
