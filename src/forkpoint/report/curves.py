"""Small multiples: the metrics of several runs over their steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from forkpoint.report.svg import Scale, drawing, element, path, series_style, tick_labels, ticks
from forkpoint.report.text import number, percent, three_figures

LONG = 100
"""Points from which on a line gets a running mean."""
MOST_LINE_POINTS = 400
"""Of a line; its panel is some 160 pixels wide."""
POINTS_WITH_TITLES = 120
"""Per series, evenly spaced, so that a run of thousands of steps does not fill the page."""
WIDTH, HEIGHT = 240, 138
LEFT, RIGHT, TOP, BOTTOM = 34, 44, 10, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One run's values of one metric."""

    label: str
    index: int
    points: Sequence[tuple[int, float]]
    band: Sequence[tuple[int, float, float]] = ()
    """(step, low, high) of a 95 % interval."""


def curve_chart(
    name: str,
    series: Sequence[Series],
    *,
    steps: tuple[int, int],
    share: bool = False,
) -> Markup:
    """A small multiple: one metric over the steps, with the last values written at the line's end.

    Args:
        series: each with at least one point.
        steps: the shared axis.
        share: the values are shares, written in percent.
    """
    show = percent if share else three_figures
    low, high = _value_range(series)
    x = Scale(*steps, LEFT, WIDTH - RIGHT)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    return drawing(
        WIDTH,
        HEIGHT,
        f"{name}: " + "; ".join(_in_words(s, show) for s in series),
        *_curve_axes(x, y, share=share),
        *(_band(s, x, y) for s in series if s.band),
        *(_line(s, x, y) for s in reversed(series)),
        *(_points(s, x, y, show) for s in reversed(series)),
        *_end_labels(series, x, y, show),
    )


def _value_range(series: Sequence[Series]) -> tuple[float, float]:
    values = [v for s in series for _, v in s.points]
    return reach(values + [v for s in series for _, *ends in s.band for v in ends])


def reach(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest; from 0 when they come near it, so that a small change looks small."""
    low, high = min(values), max(values)
    if 0 <= low <= 0.6 * high:
        low = 0.0
    if low == high:
        return (low - abs(low) / 10, high + abs(high) / 10) if low else (0.0, 1.0)
    return low, high


def _in_words(series: Series, show: Callable[[float], str]) -> str:
    (first, a), (last, b) = series.points[0], series.points[-1]
    if first == last:
        return f"{series.label} {show(a)} at step {first}"
    return f"{series.label} from {show(a)} at step {first} to {show(b)} at step {last}"


def _curve_axes(x: Scale, y: Scale, *, share: bool) -> list[Markup]:
    marks = []
    values = ticks(y.low, y.high)
    for value, text in zip(values, tick_labels(values, share=share), strict=True):
        at = y(value)
        marks.append(element("line", class_="grid", x1=x.start, x2=x.end, y1=at, y2=at))
        marks.append(element("text", text, class_="tick end", x=x.start - 5, y=at + 3.5))
    below = HEIGHT - 5
    marks.append(element("text", f"{x.low:.0f}", class_="tick middle", x=x(x.low), y=below))
    if x.high > x.low:
        marks.append(element("text", f"{x.high:.0f}", class_="tick middle", x=x(x.high), y=below))
    return marks


def _band(series: Series, x: Scale, y: Scale) -> Markup:
    """The area between the ends of the intervals; a whisker where there is only one."""
    css = series_style(series.index)
    if len(series.band) == 1:
        step, low, high = series.band[0]
        return element(
            "line", class_=f"whisker {css}", x1=x(step), x2=x(step), y1=y(low), y2=y(high)
        )
    there = [(x(step), y(high)) for step, _, high in series.band]
    back = [(x(step), y(low)) for step, low, _ in reversed(series.band)]
    return element("path", class_=f"band {css}", d=path(there + back) + "Z")


def _line(series: Series, x: Scale, y: Scale) -> Markup:
    """The values; on a long line they are faint, and their running mean is drawn over them."""
    css = series_style(series.index)

    def drawn(points: Sequence[tuple[int, float]], kind: str) -> Markup:
        d = path([(x(step), y(value)) for step, value in points])
        return element("path", class_=f"{kind} {css}", d=d)

    if len(series.points) <= LONG:
        return drawn(series.points, "line")
    raw = drawn(thinned(series.points), "raw")
    return element("g", raw, drawn(thinned(running_mean(series.points)), "line"))


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


def _points(series: Series, x: Scale, y: Scale, show: Callable[[float], str]) -> Markup:
    """Dots that tell their value; invisible on a line of many steps."""
    few = len(series.points) <= 12
    stride = math.ceil(len(series.points) / POINTS_WITH_TITLES)
    marks = []
    for step, value in [*series.points[:-1:stride], series.points[-1]]:
        text = f"{series.label}, step {step}: {number(value, 6)}"
        if show is percent:
            text += f" ({show(value)})"
        circle = element(
            "circle", element("title", text), cx=x(step), cy=y(value), r=2 if few else 4
        )
        marks.append(circle)
    return element("g", *marks, class_=f"{'dots' if few else 'hits'} {series_style(series.index)}")


def _end_labels(
    series: Sequence[Series], x: Scale, y: Scale, show: Callable[[float], str]
) -> list[Markup]:
    heights = apart([y(s.points[-1][1]) for s in series], 12, TOP, y.start)
    return [
        element(
            "text",
            show(s.points[-1][1]),
            class_=f"value {series_style(s.index)}",
            x=x.end + 6,
            y=at + 3.5,
        )
        for s, at in zip(series, heights, strict=True)
    ]


def apart(heights: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """The heights moved as little as needed for neighbours to be ``gap`` apart.

    A first pass pushes down from the top, a second one up from the bottom.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    floor = top
    for i in order:
        placed[i] = max(placed[i], floor)
        floor = placed[i] + gap
    ceiling = bottom
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed
