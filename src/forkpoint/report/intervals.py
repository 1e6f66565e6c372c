"""Rows of a table with a dot and its 95 % whisker over one shared axis, drawn by macros.html.j2."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from forkpoint.figures.axes import Axis, ticks
from forkpoint.figures.text import ends, minus, percent
from forkpoint.runs.results import Estimate


@dataclass(frozen=True, slots=True)
class Row:
    """One estimate."""

    label: str
    estimate: Estimate
    css: str = "plain"
    cells: tuple[str, ...] = ()
    """What else the row says, one text for each further column."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A row as the template needs it; places are in percent of the axis."""

    row: Row
    value: str
    ends: str
    at: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Intervals:
    """Rows with their axis."""

    rows: list[Interval]
    ticks: list[tuple[float, str]]
    """(place, text)"""
    reference: float | None


def intervals(
    rows: Sequence[Row], *, share: bool = False, reference: float | None = None, most: int = 5
) -> Intervals:
    """The rows over an axis from the lowest to the highest whisker, and the reference if any.

    Args:
        share: values are shares, written in percent.
        reference: a value with a line through all rows: no difference, chance.
        most: so many ticks.
    """
    estimates = [row.estimate for row in rows]
    values = [v for e in estimates for v in (e.value, *(e.interval or ()))]
    low, high = _rounded([*values, *([] if reference is None else [reference])])
    axis = Axis(low=low, high=high)
    decimals = max(0, round(1.9 - math.log10(high - low)))

    def place(value: float) -> float:
        return round(6 + 88 * axis.fraction(value), 2)  # a dot at an end is whole

    def show(value: float) -> str:
        return percent(value) if share else f"{value:z.{decimals}f}"

    def interval(row: Row) -> Interval:
        value, between = row.estimate.value, row.estimate.interval
        first, last = between or (value, value)
        shown = ends(first, last) if share else minus(f"[{show(first)}, {show(last)}]")
        text = shown if between else "–"
        return Interval(row, minus(show(value)), text, place(value), place(first), place(last))

    return Intervals(
        [interval(row) for row in rows],
        [
            (place(v), minus(f"{100 * v:g}\u00a0%" if share else f"{v:g}"))
            for v in ticks(low, high, most)
        ],
        None if reference is None else place(reference),
    )


def _rounded(values: Sequence[float]) -> tuple[float, float]:
    """The reach of the values, rounded outwards to half a power of ten."""
    low, high = min(values), max(values)
    if high == low:
        low, high = low - (abs(low) or 1.0) / 10, high + (abs(high) or 1.0) / 10
    step = 10.0 ** math.floor(math.log10(high - low)) / 2
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
