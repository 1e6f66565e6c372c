"""Axes, lines and labels of the report's charts."""

import re
from importlib.resources import files
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from forkpoint.report.charts import Interval, interval_chart
from forkpoint.report.curves import (
    MOST_LINE_POINTS,
    Series,
    apart,
    curve_chart,
    running_mean,
    thinned,
)
from forkpoint.report.svg import tick_labels, ticks


def test_ticks_by_hand() -> None:
    assert ticks(0, 1) == [0, 0.5, 1]
    assert ticks(0.147, 0.168) == [0.15, 0.155, 0.16, 0.165]
    assert ticks(0, 109) == [0, 50, 100]
    assert tick_labels([0, 0.05, 0.1]) == ["0.00", "0.05", "0.10"]
    assert tick_labels([0, 0.125], share=True) == ["0.0\u00a0%", "12.5\u00a0%"]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_few_and_inside(low: float, size: float, most: int) -> None:
    high = low + size
    found = ticks(low, high, most)
    assert len(found) <= most
    room = 1e-6 * size + 1e-9 * abs(low)
    assert all(low - room <= t <= high + room for t in found)


@given(st.lists(st.floats(0, 100), max_size=6))
def test_labels_stand_apart_in_their_order(heights: list[float]) -> None:
    placed = apart(heights, 10, 0, 100)
    ordered = sorted(range(len(heights)), key=lambda i: heights[i])
    gaps = [placed[b] - placed[a] for a, b in pairwise(ordered)]
    assert all(gap >= 10 - 1e-9 for gap in gaps)
    assert all(-1e-9 <= p <= 100 for p in placed)


def test_running_mean_by_hand() -> None:
    # 80 points: two neighbours on each side, fewer at the ends; 15 stands at index 1.
    points = [(i + 1, 15.0 if i == 1 else 0.0) for i in range(80)]
    means = running_mean(points)
    # index 0: of 3 values, index 1: of 4, indices 2 and 3: of 5, index 4 on: not in the window
    assert means[:5] == [(1, 5.0), (2, 3.75), (3, 3.0), (4, 3.0), (5, 0.0)]
    assert [step for step, _ in means] == list(range(1, 81))


def test_a_long_line_keeps_its_spikes() -> None:
    points = [(i, 0.0) for i in range(10_000)]
    points[4321] = (4321, 9.0)
    points[8765] = (8765, -9.0)
    kept = thinned(points)
    assert len(kept) <= MOST_LINE_POINTS
    assert {(4321, 9.0), (8765, -9.0)} <= set(kept)
    assert thinned(points[:50]) == points[:50]


def test_whiskers_reach_their_ends() -> None:
    row = Interval(label="x", value=0.3, low=0.25, high=0.4, series=0)
    svg = str(interval_chart([row], narrow=False))
    # The axis runs from 0 to 0.45 (the next twentieth above 0.4) over pixels 424 to 940.
    ends = [f"{424 + v / 0.45 * 516:.1f}".removesuffix(".0") for v in (0.25, 0.4, 0.3)]
    assert f'x1="{ends[0]}" x2="{ends[1]}"' in svg
    assert f'cx="{ends[2]}"' in svg


def test_overlaid_runs_differ_in_colour_and_in_dash() -> None:
    band = [(0, 0.0, 1.0), (1, 0.0, 2.0)]
    series = [
        Series(label=str(i), index=i, points=[(0, float(i)), (1, 1.0)], band=band) for i in range(6)
    ]
    svg = str(curve_chart("x", series, steps=(0, 1)))
    css = (files("forkpoint.report") / "templates" / "report.css").read_text(encoding="utf-8")
    styles = re.findall(r"\.(s\d) \{ --c: (\S+); --dash: ([^;]+);", css)
    assert len({colour for _, colour, _ in styles}) == len({dash for *_, dash in styles}) == 6
    for name, _, _ in styles:
        for part in ("band", "line", "dots", "value"):
            assert svg.count(f'class="{part} {name}"') == 1
