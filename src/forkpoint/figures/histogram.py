"""The histogram of entropies, with the colour scale of the token viewer under it."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from forkpoint.figures.axes import Axis
from forkpoint.figures.render import INK, PAPER, data, finish, says, series_colour
from forkpoint.figures.text import number

if TYPE_CHECKING:
    import altair as alt

COLOUR_EDGES = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Nats of entropy where the next of the nine token colours begins; the same in every report."""
SIZE = (460, 262)
MARGINS = (40, 8, 4, 28)
NAMES = 62
"""Pixels above the highest bar, for the names of the marks."""


def histogram(
    counts: Sequence[int],
    edges: Sequence[float],
    *,
    marks: Sequence[tuple[str, float]] = (),
    most: int | None = None,
    label: str,
) -> "alt.LayerChart":
    """Counts on a logarithmic axis over entropy in nats, with named vertical lines.

    Args:
        marks: (name, nats).
        most: the highest count of all histograms that share the axis; None: of this one.
    """
    import altair as alt

    height = SIZE[1] - MARGINS[2] - MARGINS[3]
    top = math.log10(max(most or max(counts), 10))
    # A bar begins half a decade below one token, so that a single token is seen.
    low = -0.5
    high = low + (top - low) * height / (height - NAMES)
    x = Axis(low=0.0, high=float(edges[-1]), count=7)
    y_scale = alt.Scale(type="log", domain=[10**low, 10**high], nice=False)
    y_axis = alt.Axis(values=[10**k for k in range(math.floor(top) + 1)], format=",", title=None)
    y = alt.Y("count:Q", scale=y_scale, axis=y_axis)
    across = x.channel(alt.X, "low", labelPadding=9, labelExpr=_last_with_unit())
    bars = alt.Chart(data(list(_bars(counts, edges)))).mark_rect(color="var(--bar)", opacity=1)
    layers = [
        bars.encode(
            x=across,
            x2=alt.X2("high:Q"),
            y=y,
            y2=alt.datum(10**low),
            description=says(),
        ),
        _strip(x, height),
        *_marks(marks, x, height),
    ]
    return finish(layers, SIZE, MARGINS, label)


def _last_with_unit() -> str:
    return "format(datum.value, ',~g') + (datum.index == 1 ? ' nats' : '')"


def _bars(counts: Sequence[int], edges: Sequence[float]) -> Any:
    gap = (edges[-1] - edges[0]) / 800  # half a pixel at each side
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            tokens = f"{count:,} token{'s' if count > 1 else ''}"
            text = f"{number(float(low))} to {number(float(high))} nats: {tokens}"
            wide = high - low > 4 * gap
            ends = (low + gap, high - gap) if wide else (low, high)
            yield {"low": float(ends[0]), "high": float(ends[1]), "count": count, "text": text}


def _strip(x: Axis, height: float) -> Any:
    """The token colours along the axis: the same scale in nats as in the completions."""
    import altair as alt

    starts = [edge for edge in (0.0, *COLOUR_EDGES) if edge < x.high]
    rows = [
        {"low": low, "high": high, "colour": f"var(--h{i})"}
        for i, (low, high) in enumerate(zip(starts, [*starts[1:], x.high], strict=True))
    ]
    return (
        alt.Chart(data(rows))
        .mark_rect(aria=False, opacity=1)
        .encode(
            x=x.channel(alt.X, "low"),
            x2=alt.X2("high:Q"),
            y=alt.YValue(height + 2),
            y2=alt.Y2Value(height + 7),
            color=alt.Color("colour:N", scale=None),
        )
    )


def _marks(marks: Sequence[tuple[str, float]], x: Axis, height: float) -> list[Any]:
    """Lines with names; the smallest value is named highest, so that no line crosses a name."""
    import altair as alt

    layers: list[Any] = []
    for row, (name, value) in enumerate(sorted(marks, key=lambda mark: mark[1])):
        at = min(value, x.high)
        line, middle = 10 + 13 * row, 6 + 13 * row
        chosen = name == "threshold"
        left = at < 0.68 * x.high
        base = alt.Chart(data([{"low": at, "text": f"{name} {number(value)}"}])).encode(
            x=x.channel(alt.X, "low")
        )
        rule = base.mark_rule(
            color=series_colour(0) if chosen else INK, strokeDash=[3, 2] if chosen else []
        )
        layers.append(rule.encode(y=alt.YValue(line - 7), y2=alt.Y2Value(height)))
        for halo in (True, False):
            text = base.mark_text(
                align="left" if left else "right",
                baseline="middle",
                dx=4 if left else -4,
                fontSize=10,
                color=PAPER if halo else INK,
                stroke=PAPER if halo else None,
                strokeWidth=3 if halo else 0,
            )
            layers.append(text.encode(text=alt.Text("text:N"), y=alt.YValue(middle)))
    return layers
