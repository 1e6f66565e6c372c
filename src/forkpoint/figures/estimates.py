"""Estimates with their intervals, one a row; values as dots, piled up where they are near."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forkpoint.figures.axes import WIDTH, Axis, reach
from forkpoint.figures.render import INK, SOFT, data, finish, says
from forkpoint.figures.text import minus, number
from forkpoint.runs.results import Estimate

if TYPE_CHECKING:
    import altair as alt

ROW = 26
DOT = 3.2
"""Radius; dots of near values are piled up."""
HALF = 44.0
"""Pixels a pile reaches on each side of its strip; a higher one is pressed together."""


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One estimate, its name, and a remark that stands behind its numbers."""

    label: str
    estimate: Estimate
    colour: str = INK
    remark: str = ""
    dots: Sequence[tuple[float, str]] = ()
    """Single values behind the estimate, each with what the pointer is told."""


def forest(
    rows: Sequence[ForestRow], *, title: str, label: str, show: Callable[[float], str] = number
) -> "alt.LayerChart":
    """A dot and its whisker a row, over one axis with a line at 0; the numbers at the right.

    Args:
        show: how a number is written.
    """
    import altair as alt

    left, right, top, bottom = 92, 132, 6, 36
    values = [0.0, *(v for r in rows for v in (r.estimate.value, *(r.estimate.interval or ())))]
    values += [value for row in rows for value, _ in row.dots]
    low, high = reach(values)
    low, high = min(low, 0.0), max(high, 0.0)
    room = 0.04 * (high - low)
    x = Axis(low=low - room, high=high + room, title=title, count=4)
    height = ROW * len(rows) + top + bottom
    layers = [_line_at_zero(x, 0, ROW * len(rows))]
    for i, row in enumerate(rows):
        value, ends = row.estimate.value, row.estimate.interval
        numbers = minus(show(value) + (f" [{show(ends[0])}, {show(ends[1])}]" if ends else ""))
        fields = {
            "x": value,
            "low": (ends or (value, value))[0],
            "high": (ends or (value, value))[1],
        }
        texts = {"label": row.label, "numbers": numbers, "remark": row.remark}
        said = ", ".join(text for text in (row.label, row.remark) if text)
        rows_ = data([fields | texts | {"said": f"{said}: {numbers}"}])
        at = alt.YValue(ROW * (i + 0.5))
        base = alt.Chart(rows_).encode(x=x.channel(alt.X, "x", grid=True), y=at)
        dots = alt.Chart(data([{"x": v, "said": text} for v, text in row.dots]))
        layers += [
            base.mark_rule(color=row.colour, strokeWidth=1.6).encode(
                x=x.channel(alt.X, "low", grid=True), x2=alt.X2("high:Q")
            ),
            dots.mark_point(filled=True, opacity=0.6, size=16, color=row.colour).encode(
                x=x.channel(alt.X, "x", grid=True), y=at, description=says("said")
            ),
            base.mark_point(filled=True, opacity=1, size=50, color=row.colour).encode(
                description=says("said")
            ),
            base.mark_text(align="right", baseline="middle", color=INK).encode(
                text=alt.Text("label:N"), x=alt.XValue(-12)
            ),
            base.mark_text(align="left", baseline="middle", color=row.colour).encode(
                text=alt.Text("numbers:N"), x=alt.XValue(WIDTH - left - right + 12)
            ),
        ]
    return finish(layers, (WIDTH, height), (left, right, top, bottom), label)


def _line_at_zero(x: Axis, top: float, bottom: float) -> Any:
    import altair as alt

    rule = alt.Chart(data([{"x": 0.0}])).mark_rule(color=SOFT, strokeDash=[2, 3])
    channel = x.channel(alt.X, "x", grid=True)
    return rule.encode(x=channel, y=alt.YValue(top), y2=alt.Y2Value(bottom))


# ---- strips -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Strip:
    """The values of one kind, each with what the pointer is told."""

    label: str
    colour: str
    values: Sequence[tuple[float, str]]


def strips(found: Sequence[Strip], *, title: str, label: str) -> "alt.LayerChart":
    """One line a kind: a dot for each value, those of near values above and below each other."""
    import altair as alt

    left, right = 84, 12
    end = max([0.05, *(abs(value) for strip in found for value, _ in strip.values)])
    x = Axis(low=-end, high=end, title=title, count=7)
    width = WIDTH - left - right
    layers: list[Any] = []
    top = 8.0
    for strip in found:
        dots = _pile(strip, x, width)
        half = max([10.0, *(abs(offset) + DOT for *_, offset in dots)])
        rows = [{"x": v, "y": top + half + dy, "text": text} for v, text, dy in dots]
        base = alt.Chart(data(rows)).mark_point(
            filled=True, opacity=0.75, size=DOT * DOT * 3.14, color=strip.colour
        )
        layers.append((base, top + half, strip.label))
        top += 2 * half + 14
    # Their place down the page is in pixels: a scale that leaves numbers as they are.
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[top, 0], nice=False, zero=False))
    across = x.channel(alt.X, "x", domain=True, domainColor=SOFT)
    drawn = [_line_at_zero(x, 0, top)]
    for base, middle, text in layers:
        name = alt.Chart(data([{"y": middle, "text": text}])).mark_text(align="right", color=INK)
        drawn += [
            base.encode(x=across, y=y, description=says()),
            name.encode(x=alt.XValue(-12), y=y, text=alt.Text("text:N")),
        ]
    return finish(drawn, (WIDTH, top + 40), (left, right, 2, 38), label)


def _pile(strip: Strip, x: Axis, width: float) -> list[tuple[float, str, float]]:
    """(value, text, pixels off the line): in columns of a dot's width, above and below in turn."""
    columns: defaultdict[int, list[tuple[float, str]]] = defaultdict(list)
    for value, text in sorted(strip.values):
        columns[round(width * x.fraction(value) / (2 * DOT))].append((value, text))
    highest = max((len(column) for column in columns.values()), default=0)
    step = min(2 * DOT, HALF / max(1, highest // 2))
    return [
        (value, text, step * ((i + 1) // 2) * (1 if i % 2 else -1))
        for column in columns.values()
        for i, (value, text) in enumerate(column)
    ]
