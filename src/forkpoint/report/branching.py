"""The section on whether forks decide: a Branching as figures and a table."""

import math
from typing import Any

from forkpoint.figures import paper
from forkpoint.figures.render import svg_for_page
from forkpoint.figures.text import minus, number, visible
from forkpoint.figures.words import shown
from forkpoint.report.analysis import INTERRUPTED
from forkpoint.report.data import RunData
from forkpoint.runs.results import Branching, Replacement

MOST_ROWS = 10
"""Of the table of the largest gaps."""


def branching_section(run: RunData) -> dict[str, Any] | None:
    """Figures and table; ``empty`` says why there are none. None: it was not measured."""
    found = run.result(Branching)
    if found is None:
        return {"empty": INTERRUPTED.format(Branching.file)} if run.began(Branching) else None
    if not found.replacements:
        return {"empty": "The budget was spent before one position was measured."}
    kinds = [r.kind for r in found.replacements]
    charts = (
        ("Squared gap, replaced by an alternative", paper.squared_gaps(found)),
        ("Squared gap, drawn again", paper.squared_gaps(found, drawn_again=True)),
    )
    return {
        "empty": None,
        "model": visible(found.model),
        "task": visible(found.task),
        "found": found,
        "high": kinds.count("high"),
        "low": kinds.count("low"),
        "charts": [(title, svg_for_page(chart)) for title, chart in charts if chart],
        "strips": svg_for_page(paper.gaps(found)),
        "rows": [_table_row(r) for r in sorted(found.replacements, key=_size)[:MOST_ROWS]],
    }


def _size(replaced: Replacement) -> tuple[float, str]:
    """Largest gaps first; equal ones by their place."""
    return (-abs(paper.gap_of(replaced)), paper.place_of(replaced))


def _table_row(replaced: Replacement) -> dict[str, str]:
    return {
        "token": shown(replaced.token),
        "alternative": shown(replaced.alternative),
        "chance": number(math.exp(replaced.alternative_logprob)),
        "entropy": number(replaced.entropy),
        "kept": number(replaced.value_kept),
        "replaced": number(replaced.value_alternative),
        "gap": minus(f"{paper.gap_of(replaced):+.3g}"),
        "place": visible(paper.place_of(replaced)),
        "n": str(replaced.continuations_alternative),
    }
