"""Axes: their reach and their ticks; points with whiskers over two of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from forkpoint.figures.render import DASHES, INK, SHAPES, SOFT, data, finish, says, series_colour

if TYPE_CHECKING:
    import altair as alt

WIDTH, HEIGHT = 460, 262
LEFT, TOP, BOTTOM = 44, 12, 40
PLAIN_RIGHT, NAMED_RIGHT = 10, 96
"""Room at the right, without and with names at the ends of the lines."""
DOTS_WIDTH = 5
"""Of a line's dots, which stand beside the plot, before the names."""
MANY = 24
"""Points from which on a line's are seen only while they tell their value."""
PERCENT = "format(100 * datum.value, '.3~f') + '\u00a0%'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One direction of a chart. Linear, or linear up to ``linear`` and logarithmic beyond."""

    low: float
    high: float
    title: str = ""
    share: bool = False
    """Values are shares, written in percent."""
    whole: bool = False
    """Ticks stand at whole numbers only."""
    linear: float | None = None
    ticks: Sequence[float] | None = None
    """Where they are; None: at round numbers."""
    count: int = 5
    """How many round numbers, about."""

    def fraction(self, value: float) -> float:
        """Where a value is, from 0 at the low end to 1."""
        low, high, at = (self._place(v) for v in (self.low, self.high, value))
        return (at - low) / (high - low)

    def value(self, fraction: float) -> float:
        """What is at a fraction of a linear axis."""
        return self.low + fraction * (self.high - self.low)

    def _place(self, value: float) -> float:
        return value if self.linear is None else symlog(value, self.linear)

    def channel(self, direction: "type[alt.X] | type[alt.Y]", field: str, **axis: Any) -> Any:
        """The encoding of a field of the data by this axis."""
        import altair as alt

        scale: dict[str, Any] = {"domain": [self.low, self.high], "nice": False, "zero": False}
        if self.linear is not None:
            # d3's symlog is log(1 + |v| / constant): nearly straight up to about the constant.
            scale |= {"type": "symlog", "constant": self.linear}
        shown: dict[str, Any] = {"title": self.title or None, "labelOverlap": "greedy"}
        shown |= {"labelExpr": PERCENT} if self.share else {"format": ",.6~r"}
        if self.ticks is None:
            shown |= {"tickCount": self.count} | ({"tickMinStep": 1} if self.whole else {})
        else:
            shown["values"] = list(self.ticks)
        return direction(f"{field}:Q", scale=alt.Scale(**scale), axis=alt.Axis(**(shown | axis)))


def symlog(value: float, constant: float) -> float:
    """sign(v) log(1 + |v| / constant): as a line near zero, as a logarithm far from it."""
    return math.copysign(math.log1p(abs(value) / constant), value)


def decades(low: float, high: float, smallest: float) -> list[float]:
    """Zero and the powers of ten from ``smallest`` on, either way, within [low, high]."""
    count = math.floor(math.log10(max(abs(low), abs(high), smallest) / smallest) + 1e-9) + 1
    powers = [smallest * 10.0**k for k in range(count)]
    return [v for v in (*(-p for p in reversed(powers)), 0.0, *powers) if low <= v <= high]


def reach(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest; from 0 when they come near it, so that a small change looks small."""
    low, high = min(values), max(values)
    if 0 <= low <= 0.6 * high:
        low = 0.0
    if low == high:
        return (low - abs(low) / 10, high + abs(high) / 10) if low else (0.0, 1.0)
    return low, high


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round values in [low, high], at most ``most`` of them, with steps of 1, 2 or 5 times 10^k."""
    if not high > low:
        return [low]
    exponent = math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20, 50):
        step = factor * 10.0**exponent
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [round(i * step, 12) for i in range(first, last + 1)]
    return [low]


def apart(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The heights moved as little as needed for neighbours to be ``gap`` apart, within the ends.

    A first pass pushes up from the low end, a second one down from the high end.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    floor = low
    for i in order:
        placed[i] = max(placed[i], floor)
        floor = placed[i] + gap
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


# ---- points over two axes -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Point:
    """One value with its 95 % interval, if it has one, and what the pointer is told."""

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Points of one kind."""

    points: Sequence[Point]
    series: int | None = None
    """Which colour and dash; None: ink."""
    name: str = ""
    """Written at the line's end."""
    joined: bool = True
    band: Sequence[tuple[float, float, float]] = ()
    """(x, low, high): an area behind the line, where whiskers would hide each other."""
    dots: Sequence[Point] = ()
    """Single values behind the last point; they stand at the right of the plot."""


def traces(
    found: Sequence[Trace],
    x: Axis,
    y: Axis,
    *,
    label: str,
    guides: Sequence[tuple[float, str]] = (),
) -> "alt.LayerChart":
    """Lines of points with whiskers or bands over two axes, and named horizontal lines across.

    Traces with whiskers stand a little beside each other, so that these are told apart.
    """
    import altair as alt

    beside = DOTS_WIDTH * (len(found) + 1) if any(trace.dots for trace in found) else 0
    right = beside + (NAMED_RIGHT if any(trace.name for trace in found) else PLAIN_RIGHT)
    margins = LEFT, right, TOP, BOTTOM
    layers = [_band(trace, x, y) for trace in found if trace.band]
    for i, trace in enumerate(found):
        layers += _trace(trace, x, y, 0.0 if trace.band else 3.0 * i - 1.5 * (len(found) - 1))
        layers += _dots(trace, y, WIDTH - LEFT - right + DOTS_WIDTH * (i + 1.2))
    named = [trace for trace in found if trace.name and trace.points]
    inside = HEIGHT - TOP - BOTTOM
    last = [inside * (1 - y.fraction(trace.points[-1].y)) for trace in named]
    for trace, at in zip(named, apart(last, 13, 0, inside), strict=True):
        edge = WIDTH - LEFT - right + 8 + beside
        layers.append(_text(trace.name, edge, at, _colour(trace), weight=600))
    for value, name in guides:
        at = inside * (1 - y.fraction(value))
        layers.insert(
            0,
            alt.Chart(data([{}]))
            .mark_rule(color=SOFT, strokeDash=[2, 3])
            .encode(x=alt.XValue(0), x2=alt.X2Value(WIDTH - LEFT - right), y=alt.YValue(at)),
        )
        layers.append(_text(name, 4, at - 7, INK))
    return finish(layers, (WIDTH, HEIGHT), margins, label)


def _colour(trace: Trace) -> str:
    return INK if trace.series is None else series_colour(trace.series)


def _text(text: str, x: float, y: float, colour: str, weight: Literal[400, 600] = 400) -> Any:
    """A text that begins at a pixel of the plot."""
    import altair as alt

    chart = alt.Chart(data([{"text": text}]))
    mark = chart.mark_text(align="left", baseline="middle", color=colour, fontWeight=weight)
    return mark.encode(text=alt.Text("text:N"), x=alt.XValue(x), y=alt.YValue(y))


def _trace(trace: Trace, x: Axis, y: Axis, shift: float) -> list[Any]:
    import altair as alt

    rows = [
        {"x": p.x, "y": p.y, "low": p.low, "high": p.high, "text": p.text} for p in trace.points
    ]
    across = {"offset": 0, "domain": True, "ticks": True, "domainColor": SOFT, "tickColor": SOFT}
    base = alt.Chart(data(rows)).encode(
        x=x.channel(alt.X, "x", tickSize=3, **across), y=y.channel(alt.Y, "y")
    )
    style: dict[str, Any] = {"color": _colour(trace), "xOffset": shift}
    seen = {"opacity": int(len(rows) <= MANY), "shape": _shape(trace), "size": 22}
    marks = [base.mark_point(filled=True, **seen, **style).encode(description=says())]
    whiskers = [row for row in rows if row["low"] is not None and row["high"] is not None]
    if whiskers:
        rule = base.mark_rule(strokeWidth=1.2, **style).properties(data=data(whiskers))
        marks.insert(0, rule.encode(y=y.channel(alt.Y, "low"), y2=alt.Y2("high:Q")))
    if trace.joined and len(rows) > 1:
        dash = DASHES[(trace.series or 0) % len(DASHES)]
        marks.insert(0, base.mark_line(strokeWidth=1.3, strokeDash=dash, **style))
    return marks


def _shape(trace: Trace) -> str:
    return SHAPES[(trace.series or 0) // len(DASHES) % len(SHAPES)]


def _band(trace: Trace, x: Axis, y: Axis) -> Any:
    """The area between the ends of the intervals; a whisker where there is only one."""
    import altair as alt

    rows = [{"x": at, "low": low, "high": high} for at, low, high in trace.band]
    base = alt.Chart(data(rows)).encode(
        x=x.channel(alt.X, "x"), y=y.channel(alt.Y, "low"), y2=alt.Y2("high:Q")
    )
    colour = _colour(trace)
    if len(rows) == 1:
        return base.mark_rule(color=colour, strokeWidth=1.2)
    return base.mark_area(color=colour, opacity=0.13)


def _dots(trace: Trace, y: Axis, at: float) -> list[Any]:
    """The single values, at a pixel of the plot."""
    import altair as alt

    if not trace.dots:
        return []
    base = alt.Chart(data([{"y": dot.y, "text": dot.text} for dot in trace.dots]))
    mark = base.mark_point(filled=True, opacity=0.55, size=12, color=_colour(trace))
    place = y.channel(alt.Y, "y")
    return [mark.encode(x=alt.XValue(at), y=place, description=says())]
