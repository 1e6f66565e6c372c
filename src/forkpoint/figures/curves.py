"""A small multiple: one metric of several runs over their steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forkpoint.figures.axes import Axis, apart, reach, ticks
from forkpoint.figures.render import DASHES, data, finish, says, series_colour
from forkpoint.figures.text import number, percent, three_figures

if TYPE_CHECKING:
    import altair as alt

LONG = 100
"""Points from which on a line gets a running mean."""
MOST_LINE_POINTS = 400
"""Of a line; its panel is some 160 pixels wide."""
POINTS_WITH_TEXTS = 120
"""Of a line, evenly spaced, so that a run of thousands of steps does not fill the page."""
SIZE = (240, 138)
MARGINS = (34, 44, 10, 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One run's values of one metric."""

    label: str
    index: int
    points: Sequence[tuple[int, float]]
    band: Sequence[tuple[int, float, float]] = ()
    """(step, low, high) of a 95 % interval."""


def curves(
    name: str, series: Sequence[Series], *, steps: tuple[int, int], share: bool = False
) -> "alt.LayerChart":
    """The lines of one metric, with their last values written at their ends.

    Args:
        series: each with at least one point.
        steps: the axis, which panels share.
        share: the values are shares, written in percent.
    """
    show = percent if share else three_figures
    values = [v for s in series for _, v in s.points]
    low, high = reach(values + [v for s in series for _, *ends in s.band for v in ends])
    first, last = steps
    x = Axis(low=first, high=max(last, first + 1), ticks=sorted({first, last}))
    y = Axis(low=low, high=high, share=share, ticks=ticks(low, high))
    layers = [_band(s, x, y) for s in series if s.band]
    layers += [layer for s in reversed(series) for layer in _lines(s, x, y)]
    layers += [_points(s, x, y, show) for s in reversed(series)]
    layers += _end_labels(series, x, y, show)
    return finish(layers, SIZE, MARGINS, f"{name}: " + "; ".join(_words(s, show) for s in series))


def _words(series: Series, show: Callable[[float], str]) -> str:
    (first, a), (last, b) = series.points[0], series.points[-1]
    if first == last:
        return f"{series.label} {show(a)} at step {first}"
    return f"{series.label} from {show(a)} at step {first} to {show(b)} at step {last}"


def _base(rows: Sequence[dict[str, Any]], x: Axis, y: Axis, field: str = "y") -> Any:
    import altair as alt

    return alt.Chart(data(rows)).encode(
        x=x.channel(alt.X, "x", labelPadding=8, labelOverlap=False), y=y.channel(alt.Y, field)
    )


def _band(series: Series, x: Axis, y: Axis) -> Any:
    """The area between the ends of the intervals; a whisker where there is only one."""
    import altair as alt

    rows = [{"x": step, "low": low, "high": high} for step, low, high in series.band]
    base, colour = _base(rows, x, y, "low").encode(y2=alt.Y2("high:Q")), series_colour(series.index)
    if len(rows) == 1:
        return base.mark_rule(color=colour, strokeWidth=1.6)
    return base.mark_area(color=colour, opacity=0.13)


def _lines(series: Series, x: Axis, y: Axis) -> list[Any]:
    """The values; on a long line they are faint, and their running mean is drawn over them."""

    def line(points: Sequence[tuple[int, float]], **style: Any) -> Any:
        rows = [{"x": step, "y": value} for step, value in thinned(points)]
        return _base(rows, x, y).mark_line(color=series_colour(series.index), **style)

    solid = {"strokeWidth": 1.6, "strokeDash": DASHES[series.index % len(DASHES)]}
    if len(series.points) <= LONG:
        return [line(series.points, **solid)]
    faint = line(series.points, strokeWidth=0.6, opacity=0.35)
    return [faint, line(running_mean(series.points), **solid)]


def running_mean(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Each value's mean with its neighbours, over a window of 1/20 of the line.

    The window is centred, and cut off at the ends: nothing is shifted in time.
    """
    half = len(points) // 40
    values = [value for _, value in points]
    means = []
    for i, (step, _) in enumerate(points):
        window = values[max(0, i - half) : i + half + 1]
        means.append((step, sum(window) / len(window)))
    return means


def thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """The points; of a long line the lowest and highest of each stretch, so that spikes stay."""
    if len(points) <= MOST_LINE_POINTS:
        return points
    stretch = math.ceil(2 * len(points) / MOST_LINE_POINTS)
    kept = set()
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        kept |= {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
    return sorted(kept)


def _points(series: Series, x: Axis, y: Axis, show: Callable[[float], str]) -> Any:
    """Dots that tell their value; seen only while they tell it on a line of many steps."""
    few = len(series.points) <= 12
    stride = math.ceil(len(series.points) / POINTS_WITH_TEXTS)
    rows = []
    for step, value in [*series.points[:-1:stride], series.points[-1]]:
        text = f"{series.label}, step {step}: {number(value, 6)}"
        more = f" ({show(value)})" if show is percent else ""
        rows.append({"x": step, "y": value, "text": text + more})
    dots = _base(rows, x, y).mark_point(
        filled=True, opacity=int(few), color=series_colour(series.index), size=14 if few else 50
    )
    return dots.encode(description=says())


def _end_labels(
    series: Sequence[Series], x: Axis, y: Axis, show: Callable[[float], str]
) -> list[Any]:
    import altair as alt

    height = SIZE[1] - MARGINS[2] - MARGINS[3]
    wanted = [height * y.fraction(s.points[-1][1]) for s in series]
    layers = []
    for s, at in zip(series, apart(wanted, 12, 0, height), strict=True):
        row = {"x": x.high, "y": y.value(at / height), "text": show(s.points[-1][1])}
        mark = _base([row], x, y).mark_text(
            align="left", baseline="middle", dx=6, fontWeight=600, color=series_colour(s.index)
        )
        layers.append(mark.encode(text=alt.Text("text:N")))
    return layers
