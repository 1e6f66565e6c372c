"""The figures draw the numbers of their files, and only the files there are."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.analysis import figures
from forkpoint.analysis.clouds import SMALLEST, place, shown, sizes
from forkpoint.analysis.words import Word, write_words
from forkpoint.errors import ConfigError, RunError
from tests.analysis_runs import DYNAMICS, SUMMARY, TEMPERATURE

BRANCHING = {
    "groups": {
        "high": {"positions": 4, "squared_gap": {"value": 0.25, "low": 0.125, "high": 0.5}},
        "low": {"positions": 4, "squared_gap": {"value": 0.0, "low": None, "high": None}},
    }
}


def word(text: str, mean: float) -> Word:
    return Word(token_id=0, text=text, count=200, mean=mean, p90=2 * mean)


WORDS = [word(" wait", 2.0), word("$\\alpha$ <b>", 1.0), word("等\n", 0.5), word("\u202e", 0.01)]


def axes_of(figure: Any) -> Any:
    (axes,) = figure.axes
    return axes


def run_directory(root: Path, **contents: Any) -> Path:
    analysis = root / "analysis"
    analysis.mkdir(parents=True)
    for name, content in contents.items():
        (analysis / f"{name}.json").write_text(json.dumps(content))
    return root


# ---- what is drawn -------------------------------------------------------------------------------


def test_the_histogram_has_its_counts_on_a_log_axis() -> None:
    summary = {**SUMMARY, "histogram": {"edges": [0.0, 0.5, 1.0, 1.5], "counts": [90, 0, 10]}}
    axes = axes_of(figures.histogram(summary))
    stairs = axes.patches[0].get_data()
    assert stairs.edges.tolist() == [0.0, 0.5, 1.0, 1.5]
    # an empty bin has no place on a log axis
    np.testing.assert_array_equal(stairs.values, [90, math.nan, 10])
    assert axes.get_yscale() == "log"
    assert axes.lines[0].get_xdata()[0] == summary["threshold_nats"] == 0.5
    assert axes.texts[0].get_text() == "top 20 %: 0.500 nats or more"
    assert axes.get_title() == "62.5% of 1,200 tokens below 0.01"


def test_entropy_against_position_is_drawn_at_the_middles() -> None:
    rows = [
        {"from": 0, "to": 2, "tokens": 9, "mean": 1.0},
        {"from": 3, "to": 5, "tokens": 0, "mean": None},
        {"from": 6, "to": 6, "tokens": 2, "mean": 0.5},
    ]
    figure = figures.by_position({"by_position": rows})
    (line,) = axes_of(figure).lines
    assert line.get_xydata().tolist() == [[1.0, 1.0], [6.0, 0.5]]
    assert figures.by_position({"by_position": []}) is None


def test_overlaps_are_drawn_against_the_step_with_intervals() -> None:
    axes = axes_of(figures.overlap(DYNAMICS))
    base, final = axes.containers
    assert base.lines[0].get_xydata().tolist() == [[0, 1.0], [10, 0.9375], [20, 0.875]]
    assert final.lines[0].get_xydata().tolist() == [[0, 0.875], [10, 0.95], [20, 1.0]]
    bars = [segment[:, 1].tolist() for segment in base.lines[2][0].get_segments()]
    assert bars == [[1.0, 1.0], [0.925, 0.95], [0.85, 0.9]]
    chance = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert chance[0].get_ydata()[0] == 0.2


def test_checkpoints_without_steps_are_named() -> None:
    checkpoints = [{"name": n, "step": None, "path": n} for n in ("base", "mine", "theirs")]
    axes = axes_of(figures.overlap({**DYNAMICS, "checkpoints": checkpoints}))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["base", "mine", "theirs"]
    # steps that do not rise are no axis either
    checkpoints = [{"name": n, "step": s, "path": n} for n, s in (("a", 0), ("b", 5), ("c", 5))]
    axes = axes_of(figures.overlap({**DYNAMICS, "checkpoints": checkpoints}))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]


def test_changes_are_bars_of_five_percent() -> None:
    axes = axes_of(figures.change_by_bin(DYNAMICS))
    bars = axes.patches
    assert [bar.get_x() for bar in bars] == [5 * i for i in range(20)]
    assert {bar.get_width() for bar in bars} == {5}
    assert [bar.get_height() for bar in bars] == [b["mean"] for b in DYNAMICS["change_by_bin"]]
    assert figures.change_by_bin({"change_by_bin": []}) is None


def test_every_percentile_has_a_panel() -> None:
    figure = figures.percentiles(DYNAMICS)
    assert [axes.get_title() for axes in figure.axes] == [
        f"{q}th percentile" for q in DYNAMICS["percentiles"]
    ]
    lines = [axes.lines[0].get_ydata().tolist() for axes in figure.axes]
    assert lines == list(DYNAMICS["percentiles"].values())
    one = figures.percentiles({**DYNAMICS, "percentiles": {"80": [1.0, 2.0, 3.0]}})
    assert axes_of(one).lines[0].get_ydata().tolist() == [1.0, 2.0, 3.0]


def test_the_two_sweeps_of_temperature() -> None:
    axes = axes_of(figures.temperature(TEMPERATURE))
    forks, rest = axes.containers
    assert forks.lines[0].get_xydata().tolist() == [[0, 0.25], [1, 0.5], [5, 0.4]]
    assert rest.lines[0].get_xydata().tolist() == [[0, 0.5], [1, 0.5], [5, 0.1]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "forks varied",
        "the rest varied",
    ]
    assert figures.temperature({"sweeps": [{"varied": "forks", "points": []}]}) is None


def test_the_squared_gaps_of_branching() -> None:
    axes = axes_of(figures.branching(BRANCHING))
    (gaps,) = axes.containers
    assert gaps.lines[0].get_ydata().tolist() == [0.25, 0.0]
    bars = [segment[:, 1].tolist() for segment in gaps.lines[2][0].get_segments()]
    assert bars == [[0.125, 0.5], [0.0, 0.0]]
    assert figures.branching({"groups": {"high": {"squared_gap": None}}}) is None


# ---- word clouds ---------------------------------------------------------------------------------


def test_font_sizes_are_proportional_to_entropy_down_to_a_smallest() -> None:
    assert sizes([2.0, 1.0, 0.5, 0.01]) == [1.0, 0.5, 0.25, SMALLEST]
    assert sizes([0.0, 0.0]) == [1.0, 1.0]
    assert sizes([]) == []


def test_words_are_drawn_as_they_can_be_seen() -> None:
    assert [shown(t) for t in (" wait ", "  ", "\n\n", "a\u202eb", "a\tb")] == [
        "wait",
        "␣␣",
        "\\n\\n",
        "a\\u202eb",
        "a\\tb",
    ]


@given(
    st.lists(st.tuples(st.floats(0.01, 3), st.floats(0.01, 1), st.floats(SMALLEST, 1)), max_size=40)
)
def test_no_word_is_on_another(shapes: list[tuple[float, float, float]]) -> None:
    boxes = place(shapes)
    assert [(b.width, b.height) for b in boxes] == [(w, h) for w, h, _ in shapes]
    assert not any(a.touches(b) for i, a in enumerate(boxes) for b in boxes[:i])
    if shapes:  # the largest font stands in the middle
        largest = boxes[max(range(len(shapes)), key=lambda i: (shapes[i][2], -i))]
        assert (largest.x + largest.width / 2, largest.y + largest.height / 2) == pytest.approx(
            (0, 0)
        )


def test_words_in_the_cloud_are_as_high_as_their_entropy() -> None:
    figure = figures.highest_words(
        [word("mm", 2.0), word("mm ", 1.0), word("x", 0.1), word("y", 0)]
    )
    heights = [patch.get_path().get_extents().height for patch in axes_of(figure).patches]
    assert len(heights) == 2  # half of the words: the others are the lowest
    assert heights[0] == pytest.approx(2 * heights[1])
    three = [word("mm", 2.0), word("x", 1.0), word("y", 0.5)]
    assert len(axes_of(figures.lowest_words(three)).patches) == 1
    assert len(axes_of(figures.lowest_words(three[:1])).patches) == 1
    assert figures.highest_words([]) is None


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format_", "magic"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")]
)
def test_what_there_is_is_drawn(tmp_path: Path, format_: str, magic: bytes) -> None:
    root = run_directory(tmp_path / "run", summary=SUMMARY, branching=BRANCHING)
    write_words(root / "analysis" / "words.parquet", WORDS)
    paths = figures.draw_figures(root, format_)
    assert [path.name for path in paths] == [
        f"{name}.{format_}"
        for name in (
            "entropy_histogram",
            "words_highest",
            "words_lowest",
            "entropy_by_position",
            "branching",
        )
    ]
    assert {path.read_bytes()[: len(magic)] for path in paths} == {magic}
    assert {path.parent for path in paths} == {root / "analysis" / "figures"}
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in figures.draw_figures(root, format_)] == before


def test_every_file_of_several_checkpoints_and_temperatures(tmp_path: Path) -> None:
    root = run_directory(tmp_path / "run", dynamics=DYNAMICS, temperature=TEMPERATURE)
    drawn = {path.stem for path in figures.draw_figures(root, "svg")}
    assert drawn == {"overlap", "change_by_bin", "percentiles", "temperature"}


def test_model_output_is_text_in_an_svg(tmp_path: Path) -> None:
    named = {"name": "<script>alert(1)</script>", "step": None, "path": ""}
    content = {**DYNAMICS, "checkpoints": [named] * 3}
    paths = figures.draw_figures(run_directory(tmp_path / "run", dynamics=content), "svg")
    assert not any(b"<script" in path.read_bytes() for path in paths)


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds nothing to draw: run forkpoint analyze first"):
        figures.draw_figures(tmp_path, "svg")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("{}", r"summary.json is not what forkpoint writes: KeyError: 'histogram'"),
        ("[]", r"summary.json is not what forkpoint writes"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path: Path, text: str, message: str) -> None:
    root = run_directory(tmp_path / "run")
    (root / "analysis" / "summary.json").write_text(text)
    with pytest.raises(RunError, match=message):
        figures.draw_figures(root, "svg")


def test_without_matplotlib_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    root = run_directory(tmp_path / "run", summary=SUMMARY)
    with pytest.raises(ConfigError, match=r"pip install 'forkpoint\[figures\]'"):
        figures.draw_figures(root, "svg")


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'gif': expected svg, pdf, png"):
        figures.draw_figures(tmp_path, "gif")
