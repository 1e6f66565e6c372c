"""Figures of an ablation draw its numbers: seeds as dots, intervals as bands."""

import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from forkpoint.figures import ablation, paper
from forkpoint.runs.ablation import Ablation
from forkpoint.runs.results import write_result
from tests.ablation_result import ABLATION, EVERYTHING, TOP, over
from tests.unit.test_figures import drawn


def bands(chart: Any) -> list[list[tuple[float, float, float]]]:
    """(x, low, high) of the areas of a chart."""
    return [
        [(row["x"], row["low"], row["high"]) for row in layer["data"]["values"]]
        for layer in chart.to_dict()["layer"]
        if layer["mark"]["type"] == "area"
    ]


def test_a_difference_has_a_row_with_a_dot_for_each_of_its_pairs() -> None:
    marks = drawn(ablation.differences(ABLATION))
    assert [said for said, *_ in marks] == [
        "top20, seed 0: +12.5",
        "top20, seed 1: +25.0",
        "top20, 2 seeds: +18.8 [−6.2, +43.8]",
    ]
    (_, first, _), (_, second, _), (_, mean, _) = marks
    assert mean == pytest.approx((first + second) / 2, abs=0.1)
    assert first < second


def test_without_a_reference_there_are_no_differences() -> None:
    alone = ABLATION.model_copy(update={"reference": None, "arms": (EVERYTHING,)})
    assert ablation.differences(alone) is None


def test_curves_stand_where_their_values_are() -> None:
    chart = ablation.accuracy_by_operations(ABLATION)
    marks = {said: (x, y) for said, x, y in drawn(chart)}
    assert set(marks) == {
        "all, step 0: 25.0\u00a0%",
        "all, step 2: 50.0\u00a0% [−12.5, 112.5], 2.00e12 operations",
        "all, step 4: 62.5\u00a0% [31.2, 93.8], 4.00e12 operations",
        "top20, step 0: 25.0\u00a0%",
        "top20, step 4: 75.0\u00a0% [68.8, 81.2], 3.00e12 operations",
        "all, seed 0: 50.0\u00a0% at the end",
        "all, seed 1: 62.5\u00a0% at the end",
        "all, seed 2: 75.0\u00a0% at the end",
        "top20, seed 0: 62.5\u00a0% at the end",
        "top20, seed 1: 87.5\u00a0% at the end",
    }
    start, end = (marks[s] for s in marks if s.startswith(("all, step 0", "all, step 4")))
    other = next(marks[s] for s in marks if s.startswith("top20, step 4"))
    assert other[0] / end[0] == pytest.approx(3 / 4, abs=0.01)
    assert (start[1] - other[1]) / (start[1] - end[1]) == pytest.approx(0.5 / 0.375, abs=0.01)
    seeds = [marks[f"all, seed {seed}: {p}\u00a0% at the end"] for seed, p in enumerate(
        ("50.0", "62.5", "75.0")
    )]  # fmt: skip
    assert seeds[1][1] == end[1]  # as high as the mean, beside the plot
    assert {x for x, _ in seeds} == {seeds[0][0]}
    assert seeds[0][0] > end[0]
    assert "10¹²" in str(chart.to_dict() if chart else "")


def test_bands_end_where_shares_do_and_have_no_width_without_an_interval() -> None:
    everything, top = bands(ablation.accuracy_by_steps(ABLATION))
    assert everything == [(0, 0.25, 0.25), (2, 0.0, 1.0), (4, 0.3125, 0.9375)]
    assert top == [(0, 0.25, 0.25), (4, 0.6875, 0.8125)]
    single = TOP.model_copy(
        update={
            "curve": tuple(
                p.model_copy(update={"accuracy": over(p.accuracy.value, None, 1)})
                for p in TOP.curve
            )
        }
    )
    assert bands(ablation.accuracy_by_steps(Ablation(arms=(single,)))) == []


def test_entropies_are_drawn_of_the_variants_that_have_them() -> None:
    chart = ablation.entropy_by_steps(ABLATION)
    assert [said for said, *_ in drawn(chart)] == [
        "all, step 1: 0.25 nats [-0.25, 0.75]",
        "all, step 4: 0.125 nats [0.0625, 0.188]",
    ]
    assert bands(chart) == [[(1, 0.0, 0.75), (4, 0.0625, 0.1875)]]
    assert ablation.entropy_by_steps(Ablation(arms=(TOP,))) is None


def test_a_long_line_of_entropies_is_thinned_and_keeps_its_end() -> None:
    line = [s.model_copy(update={"step": i}) for i in range(2001) for s in EVERYTHING.entropy[:1]]
    long = EVERYTHING.model_copy(update={"entropy": tuple(line)})
    said = [text for text, *_ in drawn(ablation.entropy_by_steps(Ablation(arms=(long,))))]
    assert len(said) <= ablation.MOST_POINTS + 1
    assert (said[0].split(":")[0], said[-1].split(":")[0]) == ("all, step 0", "all, step 2000")


def test_what_was_not_counted_is_not_drawn() -> None:
    free = TOP.model_copy(
        update={"curve": tuple(p.model_copy(update={"operations": 0.0}) for p in TOP.curve)}
    )
    found = Ablation(arms=(free,))
    assert ablation.accuracy_by_operations(found) is None
    said = [text for text, *_ in drawn(ablation.accuracy_by_steps(found))]
    assert "top20, step 4: 75.0\u00a0% [68.8, 81.2]" in said
    bare = Ablation(arms=(TOP.model_copy(update={"curve": ()}),))
    assert ablation.accuracy_by_steps(bare) is None


def test_a_seventh_variant_has_the_first_ones_colour_and_another_shape() -> None:
    arms = tuple(
        TOP.model_copy(update={"label": f"v{i}", "seeds": (), "final": ()}) for i in range(7)
    )
    layers = ablation.accuracy_by_steps(Ablation(arms=arms)).to_dict()["layer"]  # type: ignore[union-attr]
    found = [
        (layer["mark"]["color"], layer["mark"]["shape"])
        for layer in layers
        if layer["mark"]["type"] == "point"
    ]
    assert len(found) == len(set(found)) == 7
    assert found[0][0] == found[6][0]


def test_names_are_cut_where_their_room_ends() -> None:
    assert ablation.short("bottom80") == "bottom80"
    assert ablation.short("a-very-long-name") == "a-very-long…"


def test_an_ablation_is_exported_for_papers(tmp_path: Path) -> None:
    write_result(tmp_path, ABLATION)
    paths = paper.draw_figures(tmp_path, "svg")
    assert [path.name for path in paths] == [
        f"ablation_{name}.svg" for name in ("differences", "steps", "operations", "entropy")
    ]
    assert "var(" not in "".join(path.read_text() for path in paths)


def test_a_png_is_white_where_nothing_is_drawn(tmp_path: Path) -> None:
    write_result(tmp_path, ABLATION)
    for path in paper.draw_figures(tmp_path, "png"):
        png = path.read_bytes()
        chunks = re.search(rb"IDAT(.*)", png, re.DOTALL)
        assert chunks is not None
        # The first row begins with its filter; before its first pixel there is nothing to add.
        assert zlib.decompressobj().decompress(chunks[1], 5)[1:] == b"\xff\xff\xff\xff"
