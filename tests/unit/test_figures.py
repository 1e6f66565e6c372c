"""Charts draw the numbers of their results: axes, ends of whiskers, labels, words, files."""

import json
import re
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.analysis.words import Word
from forkpoint.errors import ConfigError, RunError
from forkpoint.figures import paper
from forkpoint.figures.axes import Axis, apart, decades, reach, symlog, ticks
from forkpoint.figures.curves import MOST_LINE_POINTS, Series, curves, running_mean, thinned
from forkpoint.figures.histogram import histogram
from forkpoint.figures.render import COLOURS, svg_for_page
from forkpoint.figures.words import LARGEST, SMALLEST, CloudWord, pack, shown
from forkpoint.report.intervals import Row, intervals
from forkpoint.runs.results import Dynamics, EntropyBin, Estimate, Pattern, result_path
from tests.analysis_runs import (
    BRANCHING,
    DYNAMICS,
    PATTERN,
    TEMPERATURE,
    interval,
    whole_analysis,
    write_analysis,
)
from tests.report_runs import HOSTILE


def drawn(chart: Any) -> list[tuple[str, float, float]]:
    """(what it says, x, y in pixels of the plot) of a chart's marks, as they are rendered."""
    svg = ElementTree.fromstring(str(svg_for_page(chart)))
    found = []
    for mark in svg.iterfind(".//*[@aria-label]"):
        if "transform" in mark.attrib:
            x, y = re.findall(r"-?[\d.]+", mark.attrib["transform"])
            found.append((mark.attrib["aria-label"], float(x), float(y)))
    return found


# ---- axes ---------------------------------------------------------------------------------------


def test_ticks_by_hand() -> None:
    assert ticks(0, 1) == [0, 0.5, 1]
    assert ticks(0.147, 0.168) == [0.15, 0.155, 0.16, 0.165]
    assert ticks(0, 109) == [0, 50, 100]
    assert decades(-0.001, 0.1, 1e-4) == pytest.approx([-1e-3, -1e-4, 0, 1e-4, 1e-3, 1e-2, 0.1])


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_few_and_inside(low: float, size: float, most: int) -> None:
    high = low + size
    found = ticks(low, high, most)
    assert len(found) <= most
    room = 1e-6 * size + 1e-9 * abs(low)
    assert all(low - room <= t <= high + room for t in found)


def test_an_axis_near_zero_begins_there() -> None:
    assert reach([0.2, 0.9]) == (0, 0.9)
    assert reach([0.8, 0.9]) == (0.8, 0.9)
    assert reach([0.5, 0.5]) == (0.45, 0.55)
    assert reach([0.0]) == (0, 1)


def test_symlog_by_hand() -> None:
    assert symlog(0.0, 0.2) == 0
    assert symlog(0.2, 0.2) == pytest.approx(0.6931472)  # ln 2
    assert symlog(-5.0, 0.2) == pytest.approx(-3.2580965)  # -ln 26
    axis = Axis(low=0, high=5, linear=0.2)
    assert axis.fraction(1.0) == pytest.approx(1.7917595 / 3.2580965)


@given(st.lists(st.floats(0, 100), max_size=6))
def test_labels_stand_apart_in_their_order(heights: list[float]) -> None:
    placed = apart(heights, 10, 0, 100)
    ordered = sorted(range(len(heights)), key=lambda i: heights[i])
    gaps = [placed[b] - placed[a] for a, b in pairwise(ordered)]
    assert all(gap >= 10 - 1e-9 for gap in gaps)
    assert all(-1e-9 <= p <= 100 for p in placed)


# ---- curves -------------------------------------------------------------------------------------


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


def test_points_of_a_curve_stand_where_their_values_are() -> None:
    one = Series(label="run", index=0, points=[(0, 0.0), (5, 0.25), (10, 1.0)])
    (_, x0, y0), (said, x1, y1), (_, x2, y2) = drawn(curves("Reward", [one], steps=(0, 10)))
    assert said == "run, step 5: 0.25"
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.5, abs=0.01)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(0.25, abs=0.01)
    assert y2 < y0


def test_overlaid_runs_differ_in_colour_and_in_dash() -> None:
    band = [(0, 0.0, 1.0), (1, 0.0, 2.0)]
    series = [
        Series(label=str(i), index=i, points=[(0, float(i)), (1, 1.0)], band=band) for i in range(6)
    ]
    svg = ElementTree.fromstring(str(svg_for_page(curves("x", series, steps=(0, 1)))))
    lines = [p for p in svg.iter("path") if p.get("stroke-width") == "1.6"]
    assert len({line.get("stroke") for line in lines}) == len(lines) == 6
    assert len({line.get("stroke-dasharray") for line in lines}) == 6
    bands = {p.get("fill") for p in svg.iter("path") if (p.get("fill") or "").startswith("var(--s")}
    assert {f"var(--s{i})" for i in range(6)} <= bands


def test_the_page_has_the_colours_of_the_charts() -> None:
    """A colour is a CSS variable: one that the page lacks would be black."""
    folder = files("forkpoint.report") / "templates"
    light = dark = ""
    for name in ("report.css", "tokens.css"):
        css = (folder / name).read_text(encoding="utf-8")
        one, other = css.split("prefers-color-scheme: dark")[:2]
        light, dark = light + one, dark + other
    for name, value in COLOURS.items():
        assert re.search(rf"--{name}: {value}[;\s}}]", light), name
        assert f"--{name}: " in dark


# ---- the paper's figures ------------------------------------------------------------------------


def test_the_histogram_has_its_counts_on_a_log_axis() -> None:
    chart = histogram([1000, 0, 10, 1], [0, 0.5, 1, 1.5, 2], label="h").to_dict()
    bars = chart["layer"][0]
    assert bars["encoding"]["y"]["scale"]["type"] == "log"
    # An empty bin has no place on a log axis.
    assert [row["count"] for row in bars["data"]["values"]] == [1000, 10, 1]
    svg = ElementTree.fromstring(
        str(svg_for_page(histogram([1000, 10, 1], [0, 1, 2, 3], label="h")))
    )
    tops = [
        float(re.findall(r"-?[\d.]+", bar.attrib["d"])[1])
        for bar in svg.iterfind(".//*[@aria-label]")
        if "token" in bar.attrib["aria-label"]
    ]
    assert (tops[1] - tops[0]) / (tops[2] - tops[0]) == pytest.approx(2 / 3, abs=0.01)


def test_entropy_against_position_is_drawn_at_the_middles() -> None:
    rows = ((0, 2, 9, 1.0), (3, 5, 0, None), (6, 6, 2, 0.5))
    bins = tuple(EntropyBin(first=a, last=b, count=n, mean_entropy=h) for a, b, n, h in rows)
    chart = paper.entropy_by_position(PATTERN.model_copy(update={"by_position": bins}))
    (first, x0, y0), (last, x1, y1) = drawn(chart)
    assert (first, last) == ("0 to 2: 1 nats, 9 tokens", "6 to 6: 0.5 nats, 2 tokens")
    assert x1 / x0 == pytest.approx(6, abs=0.1)  # middles at 1 and 6 of an axis from 0
    assert y0 < y1
    assert paper.entropy_by_position(PATTERN.model_copy(update={"by_position": ()})) is None


@pytest.mark.parametrize(("widths", "logarithmic"), [((4, 4, 1), False), ((1, 2, 4, 8), True)])
def test_bins_of_growing_width_get_a_logarithmic_axis(
    widths: tuple[int, ...], logarithmic: bool
) -> None:
    """A short last bin leaves the axis as it is."""
    bins, first = [], 0
    for width in widths:
        bins.append(
            EntropyBin(first=first, last=first + width - 1, count=10, mean_entropy=0.5 + first)
        )
        first += width
    chart = paper.entropy_by_position(PATTERN.model_copy(update={"by_position": tuple(bins)}))
    assert chart is not None
    assert ("(logarithmic)" in str(chart.to_dict()["description"])) is logarithmic
    assert ("symlog" in str(chart.to_dict())) is logarithmic


def test_steps_that_do_not_rise_are_no_axis() -> None:
    nodes = tuple(
        c.model_copy(update={"step": s})
        for c, s in zip(DYNAMICS.checkpoints, (0, 5, 5), strict=True)
    )
    assert paper.steps_of(DYNAMICS) == ([0, 10, 20], "step")
    assert paper.steps_of(DYNAMICS.model_copy(update={"checkpoints": nodes})) == (
        [0, 1, 2],
        "checkpoint, in the order given",
    )


def test_what_holds_nothing_is_not_drawn() -> None:
    assert paper.change_by_bin(DYNAMICS.model_copy(update={"change_by_bin": ()})) is None
    assert paper.temperature(TEMPERATURE.model_copy(update={"sweeps": ()})) is None
    empty = BRANCHING.high.model_copy(update={"squared_gap": None})
    none = {"high": empty, "low": empty, "difference": None}
    assert paper.squared_gaps(BRANCHING.model_copy(update=none)) is None
    assert paper.word_cloud([], "highest") is None


def test_whiskers_of_a_table_reach_their_ends() -> None:
    found = intervals(
        [Row("x", Estimate(value=0.3, low=0.25, high=0.4, n=8))], share=True, reference=0.0
    )
    # The axis runs from 0 to 0.4, the next twentieth, over 6 to 94 % of the column.
    (line,) = found.rows
    assert (line.low, line.at, line.high) == (61.0, 72.0, 94.0)
    assert found.reference == 6.0
    assert (line.value, line.ends) == ("30.0\u00a0%", "[25.0, 40.0]")


# ---- word clouds --------------------------------------------------------------------------------


def test_words_are_drawn_as_they_can_be_seen() -> None:
    assert [shown(t) for t in (" wait ", "  ", "\n\n", "a\u202eb", "a\tb")] == [
        "␣wait␣",
        "␣␣",
        "↵↵",
        "a⟨U+202E⟩b",
        "a␉b",
    ]


@given(st.lists(st.tuples(st.text(max_size=30), st.floats(0, 3)), max_size=25))
def test_no_word_is_on_another(words: list[tuple[str, float]]) -> None:
    placed = pack([CloudWord(text, value, text) for text, value in words])
    assert len(placed) == len(words)
    assert all(SMALLEST <= one.size <= LARGEST for one in placed)
    for i, a in enumerate(placed):
        for b in placed[:i]:
            beside = abs(a.x - b.x) >= (a.width + b.width) / 2 - 1e-9
            above = abs(a.y - b.y) >= (a.height + b.height) / 2 - 1e-9
            assert beside or above


def test_words_are_as_large_as_their_entropy() -> None:
    placed = pack([CloudWord(t, v, t) for t, v in (("mm", 2.0), ("nn", 1.0), ("x", 0.001))])
    assert placed[0].size == pytest.approx(2 * placed[1].size)
    assert placed[2].size == SMALLEST
    assert (placed[0].x, placed[0].y) == pytest.approx((0, 0))  # the largest is in the middle


def word(text: str, mean: float) -> Word:
    return Word(token_id=0, text=text, count=200, mean=mean, p90=2 * mean)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 300])
def test_no_word_is_in_both_clouds(count: int) -> None:
    words = [word(f"w{i}", float(count - i)) for i in range(count)]
    highest, lowest = paper.ends_of(words)
    assert not {w.text for w in highest} & {w.text for w in lowest}
    assert len(highest) + len(lowest) == min(count, 2 * paper.CLOUD_WORDS)
    assert [w.mean for w in lowest] == sorted(w.mean for w in lowest)


# ---- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format_", "magic"), [("svg", b"<svg"), ("pdf", b"%PDF"), ("png", b"\x89PNG")]
)
def test_what_there_is_is_drawn(tmp_path: Path, format_: str, magic: bytes) -> None:
    root = write_analysis(tmp_path / "run", PATTERN, BRANCHING)
    paths = paper.draw_figures(root, format_)
    assert [path.relative_to(root).as_posix() for path in paths] == [
        f"figures/{name}.{format_}"
        for name in (
            "entropy_histogram",
            "entropy_by_position",
            "branching",
            "branching_positions",
            "words_highest",
            "words_lowest",
        )
    ]
    assert {path.read_bytes()[: len(magic)] for path in paths} == {magic}
    before = [path.read_bytes() for path in paths]
    if format_ != "pdf":  # the objects of a PDF have no order
        assert [path.read_bytes() for path in paper.draw_figures(root, format_)] == before


def test_a_figure_for_a_paper_needs_no_style_sheet(tmp_path: Path) -> None:
    """Its colours are colours: a program that draws SVG knows no variables of a page."""
    drawn_stems = set()
    for path in paper.draw_figures(whole_analysis(tmp_path / "run"), "svg"):
        drawn_stems.add(path.stem)
        text = path.read_text(encoding="utf-8")
        assert "var(" not in text
        assert "#1f5c99" in text or path.stem not in ("overlap", "temperature")
    percentiles = {f"percentile_{q}" for q in DYNAMICS.checkpoints[-1].percentiles}
    assert drawn_stems == percentiles | {
        "entropy_histogram", "entropy_by_position", "overlap", "change_by_bin", "temperature",
        "branching", "branching_positions", "words_highest", "words_lowest",
    }  # fmt: skip


def test_hostile_text_is_text_in_a_figure(tmp_path: Path) -> None:
    """Neither an element of the SVG, nor an expression, nor a colour."""
    texts = [*HOSTILE, "datum.value", "var(--ink)", '"var(--ink)"']
    words = [(text, 200, 2.0 - i / 10, 3.0) for i, text in enumerate(texts)]
    hostile = BRANCHING.replacements[0].model_copy(update={"token": HOSTILE[0]})
    rows = BRANCHING.model_copy(update={"replacements": (hostile,)})
    root = write_analysis(tmp_path / "run", rows, words=words)
    for path in paper.draw_figures(root, "svg"):
        svg = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert {e.tag.split("}")[1] for e in svg.iter()} <= {
            "svg",
            "g",
            "path",
            "text",
            "rect",
            "line",
        }
    said = " ".join(
        text for t in ("highest", "lowest") for text in texts_of(root / f"figures/words_{t}.svg")
    )
    assert "<script>window.hacked" in said
    assert "var(--ink)" in said


def texts_of(path: Path) -> list[str]:
    svg = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    return [e.text or "" for e in svg.iter() if e.tag.endswith("}text")]


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds nothing to draw: run forkpoint analyze first"):
        paper.draw_figures(tmp_path, "svg")


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'gif': expected svg, pdf, png"):
        paper.draw_figures(tmp_path, "gif")


def test_intervals_of_figures_are_those_of_the_results() -> None:
    said = [text for text, *_ in drawn(paper.squared_gaps(BRANCHING))]
    assert "high, 2 positions: 0.25 [0.125, 0.375]" in said
    assert paper.gap_of(BRANCHING.replacements[0]) == 0.625
    bare = interval(0.5).model_copy(update={"low": None, "high": None})
    group = BRANCHING.low.model_copy(update={"squared_gap": bare})
    said = [t for t, *_ in drawn(paper.squared_gaps(BRANCHING.model_copy(update={"low": group})))]
    assert "low, 1 positions: 0.5" in said


@pytest.mark.parametrize(
    "broken", [{"edges": [], "counts": []}, {"edges": [0, 1], "counts": [1, 2]}]
)
def test_results_without_anything_are_none(tmp_path: Path, broken: dict[str, Any]) -> None:
    root = write_analysis(tmp_path / "run", PATTERN, DYNAMICS)
    for model, key, value in ((Pattern, "histogram", broken), (Dynamics, "checkpoints", [])):
        path = result_path(root, model)
        whole = path.read_text()
        path.write_text(json.dumps({**json.loads(whole), key: value}))
        with pytest.raises(RunError, match=rf"{path.name} is not a result .*{key}"):
            paper.draw_figures(root, "svg")
        path.write_text(whole)
