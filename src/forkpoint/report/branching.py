"""The section on whether forks decide: analysis/branching.json."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from forkpoint.report.data import RunData
from forkpoint.report.forest import SLIM, ForestRow, forest
from forkpoint.report.json_file import JsonObject
from forkpoint.report.svg import Scale, drawing, element, tick_labels, ticks
from forkpoint.report.text import number, visible
from forkpoint.report.words import shown
from forkpoint.runs.results import Estimate

KINDS = (("high", "high", "s1"), ("low", "low", "s0"))
MEASURES = (
    ("Replaced by an alternative", "squared_gap", "difference"),
    ("Drawn again", "resampled_squared_gap", "resampled_difference"),
)
"""(title, key in a group, key of the difference)."""
MOST_ROWS = 10
"""Of the table of the largest gaps."""
WIDTH, LEFT, RIGHT, TOP = 460, 76, 12, 20
DOT = 3.2
"""Radius; dots of near values are piled up."""
HALF = 44.0
"""Pixels a pile reaches on each side of its strip; a higher one is pressed together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """A position where the token was replaced by another one."""

    kind: str
    entropy: float
    token: str
    alternative: str
    kept: float
    replaced: float
    chance: float | None
    """Log-probability of the alternative."""
    place: str
    n: int

    @property
    def gap(self) -> float:
        """How far the expected reward moves."""
        return self.replaced - self.kept


def branching_section(run: RunData) -> dict[str, Any] | None:
    """Figures and table; ``empty`` says why there are none. None: it was not measured."""
    stored = run.analysis("branching")
    if stored is None:
        interrupted = run.interrupted("branching")
        return {"empty": interrupted} if interrupted else None
    branches = [_branch(node) for node in stored.objects("positions")]
    if not branches:
        return {"empty": "The budget was spent before one position was measured."}
    return {
        "empty": None,
        "model": visible(stored.text("model")),
        "task": visible(stored.text("task")),
        "budget": stored.whole("budget_tokens"),
        "spent": stored.whole("spent_tokens"),
        "continuations": stored.whole("continuations"),
        "counts": {kind: sum(b.kind == kind for b in branches) for kind, *_ in KINDS},
        "forests": _forests(stored),
        "strips": _strips(branches),
        "rows": [_table_row(b) for b in sorted(branches, key=_size)[:MOST_ROWS]],
    }


def _branch(node: JsonObject) -> Branch:
    return Branch(
        kind=node.text("kind"),
        entropy=node.number("entropy"),
        token=node.text("token"),
        alternative=node.text("alternative"),
        kept=node.number("value_kept"),
        replaced=node.number("value_alternative"),
        chance=node.number_or_none("alternative_logprob"),
        place=f"{node.text('prompt_id')}, answer {node.whole('sample')}, "
        f"position {node.whole('position')}",
        n=node.whole("n"),
    )


def _size(branch: Branch) -> tuple[float, str]:
    """Largest gaps first; equal ones by their place."""
    return (-abs(branch.gap), branch.place)


# ---- figures ------------------------------------------------------------------------------------


def _forests(stored: JsonObject) -> list[dict[str, Any]]:
    """(what happens to the token, unbiased squared gaps of both groups and their difference)."""
    found = []
    for title, gap, difference in MEASURES:
        rows = list(_rows(stored, gap, difference))
        if rows:
            drawn = forest(rows, reference=0.0, width=SLIM)
            found.append({"title": title, "forest": drawn, "columns": ("Positions",)})
    return found


def _rows(stored: JsonObject, gap: str, difference: str) -> Iterator[ForestRow]:
    groups = stored.object("groups")
    for kind, label, css in KINDS:
        if isinstance(groups.fields.get(kind), dict):
            group = groups.object(kind)
            yield from _forest_row(
                _estimate(group, gap), label, css, f"{group.whole('positions'):,}"
            )
    yield from _forest_row(_estimate(stored, difference), "high\u00a0−\u00a0low", "plain", "")


def _forest_row(estimate: Estimate | None, label: str, css: str, cell: str) -> Iterator[ForestRow]:
    """None without an estimate."""
    if estimate is not None:
        yield ForestRow(
            label=label,
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            css=css,
            cells=(cell,),
        )


def _estimate(node: JsonObject, name: str) -> Estimate | None:
    """None where it is null, as with fewer positions than an interval needs."""
    if not isinstance(node.fields.get(name), dict) or node.fields[name].get("value") is None:
        return None
    return node.estimate(name)


def _strips(branches: Sequence[Branch]) -> Markup:
    """One strip a kind: a dot for each position at its gap, near ones piled up."""
    reach = max(0.05, *(abs(b.gap) for b in branches))
    x = Scale(-reach, reach, LEFT, WIDTH - RIGHT)
    piles = {kind: _pile([b for b in branches if b.kind == kind], x) for kind, *_ in KINDS}
    marks, top = [], float(TOP)
    for kind, label, css in KINDS:
        half = max([10.0, *(abs(y) + DOT for _, _, y in piles[kind])])
        middle = top + half
        marks.append(
            element("text", f"{label} entropy", class_="label end", x=LEFT - 12, y=middle + 3.5)
        )
        marks.append(element("line", class_="grid", x1=x.start, x2=x.end, y1=middle, y2=middle))
        dots = [
            element(
                "circle", element("title", _title(b)), class_="dot", cx=at, cy=middle + y, r=DOT
            )
            for b, at, y in piles[kind]
        ]
        marks.append(element("g", *dots, class_=f"swarm {css}"))
        top = middle + half + 14
    return drawing(
        WIDTH,
        top + 34,
        f"Change of the expected reward at {len(branches)} positions, by kind of position",
        element("line", class_="guide", x1=x(0), x2=x(0), y1=TOP - 8, y2=top),
        *_strip_axis(x, top),
        *marks,
        css="strips",
    )


def _strip_axis(x: Scale, base: float) -> list[Markup]:
    values = ticks(x.low, x.high, 7)
    out = [element("line", class_="axis", x1=x.start, x2=x.end, y1=base, y2=base)]
    for value, text in zip(values, tick_labels(values), strict=True):
        signed = text.replace("-", "−")
        out.append(element("text", signed, class_="tick middle", x=x(value), y=base + 15))
    name = "expected reward with the alternative − with the token"
    out.append(element("text", name, class_="tick middle", x=(x.start + x.end) / 2, y=base + 31))
    return out


def _pile(branches: Sequence[Branch], x: Scale) -> list[tuple[Branch, float, float]]:
    """(branch, x, offset): in columns of one dot's width, alternately above and below."""
    columns: defaultdict[int, list[Branch]] = defaultdict(list)
    for branch in sorted(branches, key=lambda b: (b.gap, b.place)):
        columns[round(x(branch.gap) / (2 * DOT))].append(branch)
    highest = max((len(column) for column in columns.values()), default=0)
    step = min(2 * DOT, HALF / max(1, highest // 2))
    return [
        (branch, x(branch.gap), step * ((i + 1) // 2) * (1 if i % 2 else -1))
        for column in columns.values()
        for i, branch in enumerate(column)
    ]


def _title(branch: Branch) -> str:
    return (
        f"{shown(branch.token)} → {shown(branch.alternative)}: {number(branch.kept)} → "
        f"{number(branch.replaced)}, {number(branch.entropy)} nats ({visible(branch.place)})"
    )


def _table_row(branch: Branch) -> dict[str, str]:
    chance = None if branch.chance is None else math.exp(branch.chance)
    return {
        "token": shown(branch.token),
        "alternative": shown(branch.alternative),
        "chance": number(chance),
        "entropy": number(branch.entropy),
        "kind": branch.kind,
        "kept": number(branch.kept),
        "replaced": number(branch.replaced),
        "gap": f"{branch.gap:+.3g}".replace("-", "−"),
        "place": visible(branch.place),
        "n": str(branch.n),
    }
