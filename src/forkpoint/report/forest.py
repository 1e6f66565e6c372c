"""Rows of a table with a dot and its 95 % whisker over one shared axis."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from forkpoint.report.svg import Scale, drawing, element, tick_labels, ticks
from forkpoint.report.text import percent

WIDE, SLIM = 240, 110
"""Pixels of the axis: in a table of the whole column, and of half of it."""
ROW, HEAD = 24, 16
ROOM = 12
"""Pixels left free at both ends, so that a tick's text stays inside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForestRow:
    """One estimate."""

    label: str
    value: float
    low: float
    high: float
    css: str = "plain"
    cells: tuple[str, ...] = ()
    """What else the row says, one text per further column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRow:
    """A row as the template needs it."""

    row: ForestRow
    chart: Markup
    value: str
    ends: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """Made by ``forest``."""

    axis: Markup
    rows: list[DrawnRow]


def forest(
    rows: Sequence[ForestRow],
    *,
    share: bool = False,
    reference: float | None = None,
    width: int = WIDE,
) -> Forest:
    """The rows over an axis from the lowest to the highest whisker, and the reference if any.

    Args:
        share: values are shares, written in percent.
        reference: a value with a line through all rows: no difference, chance.
    """
    x = _axis(rows, reference, width)
    marks = ticks(x.low, x.high, 5 if width == WIDE else 3)

    def show(value: float) -> str:
        return percent(value) if share else f"{value:z.{_decimals(x)}f}"

    return Forest(
        axis=_head(marks, x, share=share),
        rows=[
            DrawnRow(
                row=row,
                chart=_row(row, x, marks, reference, show),
                value=_minus(show(row.value)),
                ends=ends(row.low, row.high)
                if share
                else _minus(f"[{show(row.low)}, {show(row.high)}]"),
            )
            for row in rows
        ],
    )


def ends(low: float, high: float) -> str:
    """An interval of shares in percent: ``[13.6, 23.6]``."""
    return _minus(f"[{100 * low:.1f}, {100 * high:.1f}]")


def _minus(text: str) -> str:
    """With the sign of numbers instead of the hyphen."""
    return text.replace("-", "−")


def _decimals(x: Scale) -> int:
    """As many as it takes to tell some hundreds of places on the axis apart."""
    return max(0, round(1.9 - math.log10(x.high - x.low)))


def _axis(rows: Sequence[ForestRow], reference: float | None, width: int) -> Scale:
    values = [v for row in rows for v in (row.value, row.low, row.high)]
    if reference is not None:
        values.append(reference)
    low, high = min(values), max(values)
    if high == low:
        low, high = low - (abs(low) or 1.0) / 10, high + (abs(high) or 1.0) / 10
    size = high - low
    step = 10.0 ** math.floor(math.log10(size)) / 2
    # The reach of the whiskers, rounded outwards; a little room where that leaves none.
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Scale(low, high, ROOM, width - ROOM)


def _head(marks: Sequence[float], x: Scale, *, share: bool) -> Markup:
    texts = [
        element("text", _minus(text), class_="tick middle", x=x(value), y=HEAD - 4)
        for value, text in zip(marks, tick_labels(marks, share=share), strict=True)
    ]
    return drawing(x.end + ROOM, HEAD, "axis", *texts, css=_css(x))


def _row(
    row: ForestRow,
    x: Scale,
    marks: Sequence[float],
    reference: float | None,
    show: Callable[[float], str],
) -> Markup:
    lines = [element("line", class_="grid", x1=x(v), x2=x(v), y1=0, y2=ROW) for v in marks]
    if reference is not None:
        at = x(reference)
        lines.append(element("line", class_="guide", x1=at, x2=at, y1=0, y2=ROW))
    middle = ROW / 2
    dot = element("circle", class_="dot", cx=x(row.value), cy=middle, r=4)
    bar = element("line", class_="whisker", x1=x(row.low), x2=x(row.high), y1=middle, y2=middle)
    words = f"{show(row.value)}, from {show(row.low)} to {show(row.high)}"
    return drawing(
        x.end + ROOM, ROW, words, *lines, element("g", bar, dot, class_=row.css), css=_css(x)
    )


def _css(x: Scale) -> str:
    return "forest" if x.end + ROOM == WIDE else "forest slim"
