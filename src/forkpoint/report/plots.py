"""Points with whiskers over two named axes: the charts of the analysis."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from forkpoint.report.curves import apart, reach
from forkpoint.report.svg import (
    Axis,
    Scale,
    SymlogScale,
    drawing,
    element,
    path,
    power_label,
    symlog_ticks,
    tick_labels,
    ticks,
)

WIDTH, HEIGHT = 460, 262
LEFT, TOP, BOTTOM = 44, 12, 40
PLAIN_RIGHT, NAMED_RIGHT = 10, 96
"""Room at the right, without and with names at the ends of the lines."""
BASE = HEIGHT - BOTTOM


@dataclass(frozen=True, slots=True)
class Point:
    """One value with its 95 % interval, if it has one."""

    x: float
    y: float
    title: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Points of one kind, joined by a line."""

    points: Sequence[Point]
    css: str
    name: str = ""
    """Written at the line's end."""
    shift: float = 0.0
    """Pixels to the right, so that whiskers of two lines stand beside each other."""


@dataclass(frozen=True, slots=True)
class Ticks:
    """Where an axis has marks, and what they say."""

    values: Sequence[float]
    labels: Sequence[str]


@dataclass(frozen=True, slots=True)
class Guide:
    """A named horizontal line across the plot."""

    y: float
    name: str


def across(*, named: bool = False) -> tuple[int, int]:
    """The pixels of the horizontal axis; ``named`` leaves room for names of lines."""
    return LEFT, WIDTH - (NAMED_RIGHT if named else PLAIN_RIGHT)


UP = (BASE, TOP)
"""The pixels of the vertical axis."""


def plot(
    label: str,
    traces: Sequence[Trace],
    x: Axis,
    y: Axis,
    *,
    x_ticks: Ticks,
    y_ticks: Ticks,
    x_name: str,
    guides: Sequence[Guide] = (),
) -> Markup:
    """Lines of points with whiskers.

    Args:
        label: a sentence for screen readers.
        x, y: over ``across()`` and ``UP``.
        x_name: written under the axis; what y is stands in the caption.
    """
    return drawing(
        WIDTH,
        HEIGHT,
        label,
        *grid(x, y, y_ticks),
        *below(x, x_ticks, x_name),
        *(_guide(guide, x, y) for guide in guides),
        *(_trace(trace, x, y) for trace in reversed(traces)),
        *_names([trace for trace in traces if trace.name and trace.points], x, y),
    )


def grid(x: Axis, y: Axis, marks: Ticks) -> list[Markup]:
    """Hairlines across, with their values at the left."""
    out = []
    for value, text in zip(marks.values, marks.labels, strict=True):
        at = y(value)
        out.append(element("line", class_="grid", x1=x.start, x2=x.end, y1=at, y2=at))
        out.append(element("text", text, class_="tick end", x=x.start - 6, y=at + 3.5))
    return out


def below(x: Axis, marks: Ticks, name: str, base: float = BASE) -> list[Markup]:
    """The values of the horizontal axis, and what it is."""
    out = [element("line", class_="axis", x1=x.start, x2=x.end, y1=base, y2=base)]
    for value, text in zip(marks.values, marks.labels, strict=True):
        at = x(value)
        out.append(element("line", class_="axis", x1=at, x2=at, y1=base, y2=base + 3))
        out.append(element("text", text, class_="tick middle", x=at, y=base + 15))
    out.append(element("text", name, class_="tick middle", x=(x.start + x.end) / 2, y=base + 32))
    return out


def whisker(x: float, low: float, high: float) -> Markup:
    """A vertical interval."""
    return element("line", class_="whisker", x1=x, x2=x, y1=low, y2=high)


def _guide(guide: Guide, x: Axis, y: Axis) -> Markup:
    at = y(guide.y)
    return element(
        "g",
        element("line", class_="guide", x1=x.start, x2=x.end, y1=at, y2=at),
        element("text", guide.name, class_="tick halo", x=x.start + 4, y=at - 4),
    )


def _trace(trace: Trace, x: Axis, y: Axis) -> Markup:
    marks = []
    if len(trace.points) > 1:
        d = path([(x(p.x) + trace.shift, y(p.y)) for p in trace.points])
        marks.append(element("path", class_="line", d=d))
    for point in trace.points:
        at = x(point.x) + trace.shift
        if point.low is not None and point.high is not None:
            marks.append(whisker(at, y(point.low), y(point.high)))
        title = element("title", point.title)
        marks.append(element("circle", title, class_="dot", cx=at, cy=y(point.y), r=2.6))
    return element("g", *marks, class_=f"trace {trace.css}")


def _names(traces: Sequence[Trace], x: Axis, y: Axis) -> list[Markup]:
    heights = apart([y(trace.points[-1].y) for trace in traces], 13, TOP, y.start)
    return [
        element("text", trace.name, class_=f"value {trace.css}", x=x.end + 8, y=at + 3.5)
        for trace, at in zip(traces, heights, strict=True)
    ]


# ---- axes ---------------------------------------------------------------------------------------


def linear(
    values: Sequence[float], pixels: tuple[int, int], *, share: bool = False, most: int = 5
) -> tuple[Scale, Ticks]:
    """A linear axis over the values and its ticks; from 0 when the values come near it."""
    low, high = reach(values)
    scale = Scale(low, high, *pixels)
    found = ticks(low, high, most)
    return scale, Ticks(found, tick_labels(found, share=share))


def symmetric_log(
    values: Sequence[float], pixels: tuple[int, int], threshold: float
) -> tuple[SymlogScale, Ticks]:
    """An axis that is linear within ``threshold`` of zero, with powers of ten as ticks."""
    low, high = min(0.0, *values), max(threshold, *values)
    scale = SymlogScale(low, high, *pixels, threshold)
    found = symlog_ticks(low, high, threshold)
    return scale, Ticks(found, [power_label(v) for v in found])
