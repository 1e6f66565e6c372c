"""The sections on analyses: their numbers are the files' numbers, and what is missing is said."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from forkpoint.errors import RunError
from forkpoint.report import build_report
from forkpoint.runs.atomic import write_json
from forkpoint.runs.results import (
    Result,
    result_path,
)
from forkpoint.runs.resume import Pieces
from tests.analysis_runs import (
    BRANCHING,
    DYNAMICS,
    LAB_TRUTH,
    PATTERN,
    TEMPERATURE,
    interval,
    replacement,
    write_analysis,
)
from tests.report_page import Page, page_of
from tests.report_runs import HOSTILE, make_row, make_run


def changed(result: Any, **fields: Any) -> Any:
    return result.model_copy(update=fields)


def places(page: Page, beginning: str) -> list[tuple[float, float]]:
    """Where the marks that say this are drawn, in pixels of the plot."""
    found = [re.findall(r"[-\d.]+", at) for text, at in page.marks() if text.startswith(beginning)]
    return [(float(x), float(y)) for x, y in found]


# ---- analysis -----------------------------------------------------------------------------------


def test_a_directory_with_an_analysis_only_gets_a_page(tmp_path: Path) -> None:
    page = page_of(write_analysis(tmp_path / "run", changed(PATTERN, lab=LAB_TRUTH)))
    assert page.texts["h1"] == ["run"]
    sentence = (
        "1,200 tokens of 24 completions to 6 prompts of lab:game, sampled and scored by the "
        "model lab:game at temperature 1."
    )
    assert page.words().count(sentence) == 1  # said at the top, and not again in the section
    assert list(page.sections) == ["analysis", "forks", "provenance"]
    assert "metrics.jsonl" not in page.words()
    text = page.words("analysis")
    for fact in (
        "0.25 nats mean entropy",
        "62.5 % of tokens below 0.01 nats",
        "87.5 % of all entropy is in the top 20 % of tokens",
        "0.5 nats threshold; 20.2 % of tokens reach it",
        "37.5 % right [20.0, 55.0], n = 6",
        "correct 9 400 0.200 [0.150, 0.260] [0.150, 0.260]",
        "wrong 15 800 0.275 [0.250, 0.300] [0.250, 0.300]",
        "average precision 95.0 %",
        "entropy error 0.0125 mean |measured − analytic|, nats",
    ):
        assert fact in text


def test_figures_of_the_analysis_show_the_files_numbers(tmp_path: Path) -> None:
    page = page_of(write_analysis(tmp_path / "run", PATTERN))
    titles = page.titles()
    assert [t for t in titles if "nats: " in t] == [
        "0 to 0.25 nats: 900 tokens",
        "0.25 to 0.5 nats: 150 tokens",
        "0.5 to 0.75 nats: 100 tokens",
        "0.75 to 1 nats: 50 tokens",
    ]
    # (q / 100)^3 at 50, 80 and 95
    for mark in ("p50 0.125", "p80 0.512", "p95 0.857", "threshold 0.5"):
        assert mark in page.texts["text"]
    assert len([t for t in titles if "% of the tokens have at most" in t]) == 21
    assert "80 % of the tokens have at most 0.512 nats" in titles
    assert "0 to 31: 0.375 nats, 768 tokens" in titles
    assert "32 to 63: 0.125 nats, 432 tokens" in titles
    assert "40 to 60: 0.25 nats, 24 completions" in titles


def test_a_trained_and_analysed_run_has_both(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rows={1: [make_row()]})
    write_analysis(run, PATTERN, settings={"config": {"evaluation": {"seed": 17}}})
    page = page_of(run)
    assert {"training", "entropy", "tokens", "analysis", "forks"} <= page.sections.keys()
    assert "1,200 tokens of 24 completions" in page.words("analysis")
    assert "evaluation.seed 17" in page.words("provenance")
    assert "dynamics (forkpoint dynamics)" in page.words("provenance")
    assert "entropy (forkpoint analyze)" not in page.words("provenance")


# ---- what is missing ----------------------------------------------------------------------------


def test_an_interrupted_analysis_says_so(tmp_path: Path) -> None:
    page = page_of(write_analysis(tmp_path / "run", store=[[["a", "b"]]], words=None))
    assert "the measurement was interrupted" in page.words("analysis")
    assert "forks" not in page.sections


@pytest.mark.parametrize("name", ["dynamics", "temperature", "branching"])
def test_an_interrupted_measurement_says_so(tmp_path: Path, name: str) -> None:
    run = write_analysis(tmp_path / "run", words=None)
    pieces = Pieces.open(run / "pieces" / name, {"seed": 23})
    pieces.path("part_00000.parquet").touch()
    page = page_of(run)
    assert f"results/{name}.json is not there: the measurement was interr" in page.words(name)
    assert {name, "provenance"} <= page.sections.keys()
    assert f"seed 23 pieces/{name}/settings.json" in page.words("provenance")


@pytest.mark.parametrize("name", ["dynamics", "temperature", "branching"])
def test_an_analysis_that_failed_makes_no_page(tmp_path: Path, name: str) -> None:
    """It leaves its settings: no such model, say."""
    run = tmp_path / "run"
    Pieces.open(run / "pieces" / name, {"seed": 23})
    (run / ".lock").touch()
    with pytest.raises(RunError, match=r"run holds no metrics\.jsonl and no results"):
        page_of(run)


def test_zero_tokens_are_said_plainly(tmp_path: Path) -> None:
    page = page_of(write_analysis(tmp_path / "run", changed(PATTERN, tokens=0), words=()))
    assert "The analysis holds 0 tokens" in page.words("analysis")
    assert "No token string occurs more than 100 times" in page.words("forks")
    run = write_analysis(
        tmp_path / "other",
        changed(DYNAMICS, tokens=0),
        changed(TEMPERATURE, sweeps=()),
        changed(BRANCHING, replacements=()),
        words=None,
    )
    page = page_of(run)
    assert "analysis" not in page.sections  # only other commands were run here
    assert "0 tokens" in page.words("dynamics")
    assert "No point of the temperature sweeps" in page.words("temperature")
    assert "budget was spent before" in page.words("branching")


def test_figures_without_data_are_left_out_or_said(tmp_path: Path) -> None:
    bare = changed(PATTERN, by_position=(), by_length=(), by_correctness=(), accuracy=None)
    page = page_of(write_analysis(tmp_path / "run", bare, words=None))
    assert page.words("analysis").count("not recorded") == 2
    assert "by correctness" not in page.words("analysis")
    assert " right [" not in page.words("analysis")


@pytest.mark.parametrize("result", [PATTERN, DYNAMICS, TEMPERATURE, BRANCHING])
def test_a_broken_result_is_named_with_its_field(tmp_path: Path, result: Result) -> None:
    """Every field of every result that is not what it should be, one at a time."""
    run = write_analysis(tmp_path / "run")
    path = result_path(run, type(result))
    whole = result.model_dump(mode="json")
    for name in whole.keys() - {"schema_version"}:
        write_json(path, {**whole, name: {"broken": "yes"}})
        with pytest.raises(RunError, match=rf"{path.name} is not a result .*\b{name}\b"):
            build_report([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


# ---- dynamics -----------------------------------------------------------------------------------


def test_dynamics_show_the_files_numbers(tmp_path: Path) -> None:
    page = page_of(write_analysis(tmp_path / "run", DYNAMICS, words=None))
    text = page.words("dynamics")
    assert "The same 5,000 tokens of 16 prompts" in text
    assert "step_00010 93.8 % [92.5, 95.0] [92.5, 95.0] 95.0 % [94.0, 96.0]" in text
    assert "chance 20.0\u00a0%" in page.texts["text"]
    titles = page.titles()
    assert "step 10: 93.8\u00a0% [92.5, 95.0] shared with the base" in titles
    assert "step 20: 100.0\u00a0% [100.0, 100.0] shared with the final" in titles
    # Steps 0, 10 and 20 stand evenly; shares fall as they go down the page.
    (x0, y0), (x1, y1), (x2, y2) = (places(page, f"step {s}: ")[0] for s in (0, 10, 20))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert (y1 - y0) / (y2 - y0) == pytest.approx((1 - 0.9375) / (1 - 0.875), abs=0.01)
    panels = [label for label in page.labels() if "th percentile" in label]
    assert len([p for p in panels if p.startswith("80th percentile: ")]) == 1
    assert "80th percentile: 80th percentile from 0.800 at step 0 to 1.00 at step 20" in panels


def test_changes_stand_on_a_symmetric_logarithmic_axis(tmp_path: Path) -> None:
    page = page_of(write_analysis(tmp_path / "run", DYNAMICS, words=None))
    assert "linear up to 10⁻⁴ nats and logarithmic beyond" in page.words("dynamics")
    titles = page.titles()
    text = "15 to 20 % (base 0.15 to 0.2 nats): -3.98e-5 nats [-0.001, 0.1], 250 tokens"
    assert text in titles
    # A change of v is at sign(v) ln(1 + |v| / 1e-4) units from zero: bin 15 at ln 101, bin 3,
    # which falls, at -ln 1.398.
    at = {i: places(page, f"{5 * i} to {5 * i + 5} % (base")[0][1] for i in (3, 10, 15)}
    unit = (at[10] - at[15]) / (4.61512 - 2.39790)  # bin 10: 1e-3, so ln 11
    assert (at[3] - at[15]) / unit == pytest.approx(4.61512 + 0.33510, abs=0.02)
    for tick in ("0", "0.0001", "0.001", "0.01", "0.1", "−0.0001", "−0.001"):
        assert tick in page.texts["text"]


def test_checkpoints_without_steps_stand_in_their_order(tmp_path: Path) -> None:
    nodes = tuple(changed(c, step=None) for c in DYNAMICS.checkpoints)
    page = page_of(
        write_analysis(tmp_path / "run", changed(DYNAMICS, checkpoints=nodes), words=None)
    )
    assert "checkpoint, in the order given" in page.texts["text"]
    assert "checkpoint 1: 93.8\u00a0% [92.5, 95.0] shared with the base" in page.titles()


def test_intervals_that_could_not_be_taken_are_left_out(tmp_path: Path) -> None:
    first, middle, last = DYNAMICS.checkpoints
    bare = changed(interval(0.9375), low=None, high=None)
    nodes = (first, changed(middle, overlap_with_base=bare), changed(last, overlap_with_base=None))
    run = write_analysis(tmp_path / "run", changed(DYNAMICS, checkpoints=nodes), words=None)
    text = page_of(run).words("dynamics")
    assert "step_00010 93.8 % 95.0 % [94.0, 96.0]" in text
    assert "step_00020 – 100.0 %" in text


# ---- temperature and branching ------------------------------------------------------------------


def test_temperatures_show_the_files_numbers(tmp_path: Path) -> None:
    page = page_of(write_analysis(tmp_path / "run", TEMPERATURE, words=None))
    text = page.words("temperature")
    assert "above 0.5 nats, the 80th percentile (20.0 % of the tokens), are drawn" in text
    assert "100 problems with 4 answers each" in text
    # 0.25 - 0.5 = -0.25 with 0.03125 on either side; 0.03125 * 100 = 3.125
    assert "forks 0 25.0 % [20.0, 30.0] −25.0 [−28.1, −21.9] 64 12.5 %" in text
    assert "rest 5 10.0 % [5.0, 15.0] −40.0 [−43.1, −36.9] 64 12.5 %" in text
    assert "forks, temperature 5: 40.0\u00a0% [35.0, 45.0]" in page.titles()
    # A temperature is at ln(1 + t / 0.2): 0, ln 6 and ln 26.
    x0, x1, x5 = (places(page, f"forks, temperature {t}:")[0][0] for t in (0, 1, 5))
    assert (x1 - x0) / (x5 - x0) == pytest.approx(1.79176 / 3.25810, abs=0.001)


def test_branching_shows_the_files_numbers(tmp_path: Path) -> None:
    page = page_of(write_analysis(tmp_path / "run", BRANCHING, words=None))
    text = page.words("branching")
    assert "At 2 positions of high and 1 of low entropy" in text
    assert "finished 8 times" in text
    assert "48,000 of 50,000 tokens were spent" in text
    titles = page.titles()
    for row in (
        "high, 2 positions: 0.25 [0.125, 0.375]",
        "low, 1 positions: 0 [−0.0625, 0.0625]",
        "high − low: 0.25 [0.125, 0.375]",
        # Drawn again: a quarter of it in the fixture
        "high, 2 positions: 0.0625 [0.0312, 0.0938]",
        "high − low: 0.0625 [0.0312, 0.0938]",
    ):
        assert titles.count(row) == 1
    # Largest first: 0.25 -> 0.875, 0.5 -> 0.125, 0.5 -> 0.5; ln p = -0.693 is a half.
    order = [
        "␣If → ␣so 0.5 1.25 0.25 0.875 +0.625",
        "if → ␣so 0.5 1.25 0.5 0.125 −0.375",
        "if → ␣so 0.5 0.01 0.5 0.5 +0",
    ]
    assert " ".join(order) in text
    assert "␣If → ␣so: 0.25 → 0.875, 1.25 nats (p1, answer 0, position 3)" in titles
    # The largest gap, 0.625, is the reach of the axis; 0 is in its middle.
    up, down, none = (
        places(page, f"{text}, ")[0][0]
        for text in (
            "␣If → ␣so: 0.25 → 0.875",
            "if → ␣so: 0.5 → 0.125",
            "if → ␣so: 0.5 → 0.5",
        )
    )
    assert (none - down) / (up - none) == pytest.approx(0.375 / 0.625, abs=0.002)


def test_dots_of_near_gaps_do_not_hide_each_other(tmp_path: Path) -> None:
    rows = tuple(replacement("low", i, 0.5, 0.5) for i in range(9))
    run = write_analysis(tmp_path / "run", changed(BRANCHING, replacements=rows), words=None)
    dots = places(page_of(run), "if → ␣so: 0.5 → 0.5")
    assert len(set(dots)) == 9
    heights = sorted(y for _, y in dots)
    # Four on each side of the middle, one dot's width of 6.4 apart
    assert heights[-1] - heights[0] == pytest.approx(8 * 6.4, abs=0.2)


# ---- the page -----------------------------------------------------------------------------------


def test_every_section_has_an_address_and_stands_in_the_contents(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", metrics=[{"step": 1, "eval/accuracy": 0.5}], rows={1: [make_row()]}
    )
    write_analysis(run, PATTERN, DYNAMICS, TEMPERATURE, BRANCHING)
    page = page_of(run)
    anchors = [a["id"] for tag, a in page.elements if tag == "section"]
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert len(anchors) == len(set(anchors)) == 11
    assert links[2 : 2 + len(anchors)] == [f"#{anchor}" for anchor in anchors]
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link} <= set(ids)


FREE = {"model", "source", "task", "name", "path", "prompt_id", "token", "alternative"}
"""The fields of results that can hold any text."""


def hostile(value: Any, key: str = "") -> Any:
    """The same JSON with every free text an attack."""
    if isinstance(value, str) and key in FREE:
        return " ".join(HOSTILE)
    if isinstance(value, list):
        return [hostile(v, key) for v in value]
    return {k: hostile(v, k) for k, v in value.items()} if isinstance(value, dict) else value


def test_hostile_analyses_add_no_element_to_the_page(tmp_path: Path) -> None:
    results = [changed(PATTERN, lab=LAB_TRUTH), DYNAMICS, TEMPERATURE, BRANCHING]
    plain = page_of(write_analysis(tmp_path / "a" / "plain", *results, store=[[["wait", " so"]]]))
    bad = write_analysis(
        tmp_path / "b" / "bad",
        words=[(text, 200 - i, 1.0, 2.0) for i, text in enumerate(HOSTILE)],
        store=[[[*HOSTILE, "end"]]],
    )
    for result in results:
        path = result_path(bad, type(result))
        write_json(path, hostile(json.loads(result.model_dump_json())))
    page = page_of(bad)
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements}
    assert len([1 for tag, _ in page.elements if tag == "script"]) == 2
    hidden = "[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
    assert not re.search(hidden, page.source)
    assert "<script>window.hacked = 1</script>" in page.words("forks")
    assert "<script>window.hacked = 1</script>" in page.words("branching")
