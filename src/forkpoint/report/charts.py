"""Charts as SVG text. Colours and dashes are classes of report.css; numbers stand in <title>."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from forkpoint.report.svg import Scale, drawing, element, series_style, tick_labels, ticks
from forkpoint.report.text import number, percent

# ---- intervals ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """One row of a dot-and-whisker figure; value and ends are shares."""

    label: str
    value: float
    low: float
    high: float
    series: int | None
    """The run it belongs to; None: drawn hollow, in no run's colour."""

    @property
    def ends(self) -> str:
        return f"[{100 * self.low:.1f}, {100 * self.high:.1f}]"


def interval_chart(rows: Sequence[Interval], *, narrow: bool) -> Markup:
    """Dots with 95 % whiskers over one axis in percent; ``narrow`` puts labels above the rows."""
    width, height, first = (358, 62, 36) if narrow else (1176, 58, 34)
    left, right = (6, 236) if narrow else (424, 940)
    bottom = first + height * (len(rows) - 1) + 26
    x = Scale(0.0, _axis_end(max(row.high for row in rows)), left, right)
    values = ticks(x.low, x.high, 4 if narrow else 7)
    marks = []
    for value, text in zip(values, tick_labels(values, share=True), strict=True):
        at = x(value)
        marks.append(element("line", class_="grid", x1=at, x2=at, y1=4, y2=bottom))
        marks.append(element("text", text, class_="tick middle", x=at, y=bottom + 15))
    for index, row in enumerate(rows):
        draw = _narrow_row if narrow else _wide_row
        marks.append(draw(row, x, first + height * index))
    words = "; ".join(f"{row.label}: {percent(row.value)} {row.ends}" for row in rows)
    css = "intervals narrow" if narrow else "intervals wide"
    return drawing(width, bottom + 20, words, *marks, css=css)


def _axis_end(highest: float) -> float:
    """The next twentieth above the highest whisker."""
    return min(1.0, max(0.05, math.ceil(highest * 20 + 0.2) / 20))


def _wide_row(row: Interval, x: Scale, y: int) -> Markup:
    return _interval_row(
        row,
        x,
        y,
        element("text", row.label, class_="label", x=0, y=y + 5),
        element("text", percent(row.value), class_="numeral end", x=1074, y=y + 11),
        element("text", row.ends, class_="ends", x=1090, y=y + 5),
    )


def _narrow_row(row: Interval, x: Scale, y: int) -> Markup:
    return _interval_row(
        row,
        x,
        y,
        element("text", row.label, class_="label", x=0, y=y - 15),
        element("text", percent(row.value), class_="numeral end", x=358, y=y + 8),
        element("text", row.ends, class_="ends end", x=358, y=y + 22),
    )


def _interval_row(row: Interval, x: Scale, y: int, *texts: Markup) -> Markup:
    css = "before" if row.series is None else series_style(row.series)
    return element(
        "g",
        *texts,
        element("line", class_="whisker", x1=x(row.low), x2=x(row.high), y1=y, y2=y),
        element("circle", cx=x(row.value), cy=y, r=5.5),
        class_=f"interval {css}",
    )


# ---- histogram ----------------------------------------------------------------------------------

HISTOGRAM_WIDTH, HISTOGRAM_HEIGHT = 460, 262
HISTOGRAM_LEFT, HISTOGRAM_TOP, HISTOGRAM_BOTTOM = 40, 66, 24


def histogram_chart(
    counts: Sequence[int],
    edges: Sequence[float],
    *,
    most: int,
    marks: Sequence[tuple[str, float]],
    colour_edges: Sequence[float],
    label: str,
) -> Markup:
    """Counts on a logarithmic axis over entropy in nats, with named vertical lines.

    Args:
        most: the highest count of all histograms that share the axis.
        marks: (name, nats).
        colour_edges: where the classes of the token colours begin, drawn along the axis.
    """
    x = Scale(0.0, float(edges[-1]), HISTOGRAM_LEFT, HISTOGRAM_WIDTH - 8)
    base = HISTOGRAM_HEIGHT - HISTOGRAM_BOTTOM
    # A bar begins half a decade below one token, so that a single token is seen.
    y = Scale(-0.5, math.log10(max(most, 10)), base, HISTOGRAM_TOP)
    return drawing(
        HISTOGRAM_WIDTH,
        HISTOGRAM_HEIGHT,
        label,
        *_count_axis(x, y),
        *_bars(counts, edges, x, y),
        *_colour_strip(colour_edges, x, base),
        *_nats_axis(x, base),
        *_marks(marks, x, base),
        css="histogram",
    )


def _count_axis(x: Scale, y: Scale) -> list[Markup]:
    out = []
    for power in range(math.floor(y.high) + 1):
        at = y(power)
        out.append(element("line", class_="grid", x1=x.start, x2=x.end, y1=at, y2=at))
        out.append(element("text", f"{10**power:,}", class_="tick end", x=x.start - 5, y=at + 3.5))
    return out


def _bars(counts: Sequence[int], edges: Sequence[float], x: Scale, y: Scale) -> list[Markup]:
    bars = []
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            top = y(math.log10(count))
            tokens = f"{count:,} token{'s' if count > 1 else ''}"
            text = f"{number(float(low))} to {number(float(high))} nats: {tokens}"
            wide = max(x(high) - x(low) - 1, 0.8)
            bars.append(
                element(
                    "rect",
                    element("title", text),
                    class_="bar",
                    x=x(low) + 0.5,
                    y=top,
                    width=wide,
                    height=y.start - top,
                )
            )
    return bars


def _colour_strip(colour_edges: Sequence[float], x: Scale, base: int) -> list[Markup]:
    """The token colours along the axis: the same scale in nats as in the completions."""
    ends = [e for e in (0.0, *colour_edges) if e < x.high]
    return [
        element("rect", class_=f"h{i}", x=x(low), y=base + 2, width=x(high) - x(low), height=5)
        for i, (low, high) in enumerate(zip(ends, [*ends[1:], x.high], strict=True))
    ]


def _nats_axis(x: Scale, base: int) -> list[Markup]:
    values = ticks(0.0, x.high, 7)
    *texts, last = tick_labels(values)
    return [
        element("text", text, class_="tick middle", x=x(value), y=base + 19)
        for value, text in zip(values, [*texts, f"{last} nats"], strict=True)
    ]


def _marks(marks: Sequence[tuple[str, float]], x: Scale, base: int) -> list[Markup]:
    """Lines with names; the smallest value is named highest, so that no line crosses a name."""
    out = []
    for row, (name, value) in enumerate(sorted(marks, key=lambda mark: mark[1])):
        at, height = x(min(value, x.high)), 10 + 13 * row
        css = "mark threshold" if name == "threshold" else "mark"
        left = at < x.start + 0.68 * (x.end - x.start)
        out.append(element("line", class_=css, x1=at, x2=at, y1=height - 7, y2=base))
        out.append(
            element(
                "text",
                f"{name} {number(value)}",
                class_="tick halo" if left else "tick halo end",
                x=at + 4 if left else at - 4,
                y=height,
            )
        )
    return out


# ---- small marks --------------------------------------------------------------------------------


def mean_and_p90(mean: float, p90: float, highest: float) -> Markup:
    """A dot at the mean and a tick at the 90th percentile, for one row of a table."""
    x = Scale(0.0, highest or 1.0, 3, 117)
    return drawing(
        120,
        12,
        f"mean {number(mean)}, 90th percentile {number(p90)} nats",
        element("line", class_="grid", x1=3, x2=117, y1=6, y2=6),
        element("line", class_="reach", x1=x(mean), x2=x(p90), y1=6, y2=6),
        element("line", class_="reach", x1=x(p90), x2=x(p90), y1=2, y2=10),
        element("circle", class_="mean", cx=x(mean), cy=6, r=3),
        css="inline",
    )


def key_line(index: int) -> Markup:
    """A short piece of a run's line, for the key."""
    css = series_style(index)
    return drawing(
        28,
        10,
        "",
        element("line", class_=f"line {css}", x1=1, x2=27, y1=5, y2=5),
        css="key",
    )
