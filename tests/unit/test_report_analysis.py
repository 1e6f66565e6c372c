"""The sections on analyses: their numbers are the files' numbers, and what is missing is said."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from forkpoint.errors import RunError
from forkpoint.report import build_report
from forkpoint.runs.atomic import write_json
from tests.analysis_runs import (
    BRANCHING,
    DYNAMICS,
    LAB_TRUTH,
    SUMMARY,
    TEMPERATURE,
    interval,
    write_analysis,
)
from tests.report_page import Page, page_of
from tests.report_runs import HOSTILE, make_row, make_run


def attributes(page: Page, tag: str, css: str) -> list[dict[str, str | None]]:
    """Of the elements with a class."""
    return [a for t, a in page.elements if t == tag and css in (a.get("class") or "").split()]


def pixels(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


# ---- analysis -----------------------------------------------------------------------------------


def test_a_directory_with_an_analysis_only_gets_a_page(tmp_path: Path) -> None:
    page = page_of(write_analysis(tmp_path / "run", summary={**SUMMARY, **LAB_TRUTH}))
    assert page.texts["h1"] == ["run"]
    sentence = (
        "1,200 tokens of 24 completions to 6 prompts of lab, sampled and scored by the model lab "
        "at temperature 1."
    )
    assert page.words().count(sentence) == 1  # said at the top, and not again in the section
    assert list(page.sections) == ["analysis", "forks", "completions", "provenance"]
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
    page = page_of(write_analysis(tmp_path / "run", summary=SUMMARY))
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
    assert "0 to 32: 0.375 nats, 768 tokens" in titles
    assert "32 to 64: 0.125 nats, 432 tokens" in titles
    assert "40 to 60: 0.25 nats, 24 completions" in titles


def test_bins_of_growing_width_get_a_logarithmic_axis(tmp_path: Path) -> None:
    bins = [{"from": 2**i, "to": 2 ** (i + 1), "tokens": 10, "mean": 0.5} for i in range(9)]
    page = page_of(write_analysis(tmp_path / "run", summary={**SUMMARY, "by_position": bins}))
    assert "position in the answer (logarithmic)" in page.texts["text"]
    assert "tokens of the answer" in page.texts["text"]
    # Linear up to 1, so 1 + log10 of the middle 1.5; the last middle is 384.
    first = 44 + (450 - 44) * (1 + math.log10(1.5)) / (1 + math.log10(384))
    assert f'cx="{pixels(first)}"' in page.source


def test_a_short_last_bin_leaves_the_axis_linear(tmp_path: Path) -> None:
    ends = ((0, 3), (4, 7), (8, 8))
    bins = [{"from": a, "to": b, "tokens": 10, "mean": 0.5} for a, b in ends]
    page = page_of(write_analysis(tmp_path / "run", summary={**SUMMARY, "by_position": bins}))
    assert "position in the answer" in page.texts["text"]
    # The middles 1.5, 5.5 and 8 on an axis from 0 to 8
    circles = {a["cx"] for a in attributes(page, "circle", "dot")}
    assert {pixels(44 + 406 * v / 8) for v in (1.5, 5.5, 8)} <= circles


def test_a_trained_and_analysed_run_has_both(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rows={1: [make_row()]})
    write_analysis(run, summary=SUMMARY, settings={"config": {"evaluation": {"seed": 17}}})
    page = page_of(run)
    assert {"training", "entropy", "tokens", "analysis", "forks"} <= page.sections.keys()
    assert "1,200 tokens of 24 completions" in page.words("analysis")
    assert "evaluation.seed 17" in page.words("provenance")
    assert "dynamics (forkpoint dynamics)" in page.words("provenance")
    assert "entropy (forkpoint analyze)" not in page.words("provenance")


# ---- what is missing ----------------------------------------------------------------------------


def test_an_interrupted_analysis_says_so(tmp_path: Path) -> None:
    page = page_of(write_analysis(tmp_path / "run", store=[[["a", "b"]]], words=None))
    assert "the analysis was interrupted" in page.words("analysis")
    assert "forks" not in page.sections


@pytest.mark.parametrize("name", ["dynamics", "temperature", "branching"])
def test_an_interrupted_measurement_says_so(tmp_path: Path, name: str) -> None:
    run = write_analysis(tmp_path / "run", words=None)
    (run / "analysis" / name).mkdir()
    write_json(run / "analysis" / name / "config.json", {"seed": 23})
    (run / "analysis" / name / "part_00000.parquet").touch()
    page = page_of(run)
    assert f"analysis/{name}.json is not there: the measurement was interr" in page.words(name)
    assert list(page.sections) == ["completions", name, "provenance"]
    assert f"seed 23 analysis/{name}/config.json" in page.words("provenance")


@pytest.mark.parametrize("name", ["", "dynamics", "temperature", "branching"])
def test_an_analysis_that_failed_makes_no_page(tmp_path: Path, name: str) -> None:
    """It leaves its settings: no such model, say."""
    run = tmp_path / "run"
    write_json(run / "analysis" / name / "config.json", {"seed": 23})
    (run / ".lock").touch()
    message = r"run holds no metrics\.jsonl, .* its analysis ended before anything was measured$"
    with pytest.raises(RunError, match=message):
        page_of(run)


def test_zero_tokens_are_said_plainly(tmp_path: Path) -> None:
    page = page_of(write_analysis(tmp_path / "run", words=(), summary={**SUMMARY, "tokens": 0}))
    assert "The analysis holds 0 tokens" in page.words("analysis")
    assert "No token string occurs more than 100 times" in page.words("forks")
    run = write_analysis(
        tmp_path / "other",
        words=None,
        dynamics={**DYNAMICS, "tokens": 0},
        temperature={**TEMPERATURE, "sweeps": []},
        branching={**BRANCHING, "positions": []},
    )
    page = page_of(run)
    assert "analysis" not in page.sections  # only other commands were run here
    assert "0 tokens" in page.words("dynamics")
    assert "No point of the temperature sweeps" in page.words("temperature")
    assert "budget was spent before" in page.words("branching")


def test_figures_without_data_are_left_out_or_said(tmp_path: Path) -> None:
    bare = {**SUMMARY, "by_position": [], "by_length": [], "by_correctness": [], "accuracy": None}
    page = page_of(write_analysis(tmp_path / "run", summary=bare, words=None))
    assert page.words("analysis").count("not recorded") == 2
    assert "by correctness" not in page.words("analysis")
    assert " right [" not in page.words("analysis")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"mean_entropy_nats": None}, "mean_entropy_nats must be a number"),
        ({"histogram": {"edges": [0], "counts": [1]}}, "histogram needs one edge more"),
        ({"histogram": [1]}, "histogram must be an object"),
        ({"by_position": [{"from": 0, "to": 9, "mean": 1}]}, r"by_position\[0\]\.tokens must be"),
        ({"by_length": {"from": 0}}, "by_length must be a list of objects"),
        ({"percentiles": {"50": "x", "80": 1, "95": 1}}, r"percentiles\.50 must be a number"),
    ],
)
def test_a_broken_summary_is_named_with_its_key(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    run = write_analysis(tmp_path / "run", summary={**SUMMARY, **change})
    with pytest.raises(RunError, match=rf"analysis/summary\.json: {complaint}"):
        build_report([run], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


# ---- dynamics -----------------------------------------------------------------------------------


def test_dynamics_show_the_files_numbers(tmp_path: Path) -> None:
    page = page_of(write_analysis(tmp_path / "run", words=None, dynamics=DYNAMICS))
    text = page.words("dynamics")
    assert "The same 5,000 tokens of 16 prompts" in text
    assert "step_00010 93.8 % [92.5, 95.0] [92.5, 95.0] 95.0 % [94.0, 96.0]" in text
    assert "chance 20.0\u00a0%" in page.texts["text"]
    titles = page.titles()
    assert "step 10: 93.8\u00a0% [92.5, 95.0] shared with the base" in titles
    assert "step 20: 100.0\u00a0% [100.0, 100.0] shared with the final" in titles
    # The shares 0 to 1 go from pixel 222 up to 12, the steps 0 to 20 from 44 to 364.
    circles = [(a["cx"], a["cy"]) for a in attributes(page, "circle", "dot")]
    assert (pixels(204), pixels(222 - 0.9375 * 210)) in circles
    panels = [label for label in page.labels() if "th percentile" in label]
    assert len(panels) == 9
    assert "80th percentile: 80th percentile from 0.800 at step 0 to 1.00 at step 20" in panels


def test_changes_stand_on_a_symmetric_logarithmic_axis(tmp_path: Path) -> None:
    page = page_of(write_analysis(tmp_path / "run", words=None, dynamics=DYNAMICS))
    assert "linear up to 10⁻⁴ nats and logarithmic beyond" in page.words("dynamics")
    # From -0.001 (two units below zero) to 0.1 (four above): 6 units from pixel 222 up to 12.
    dots = [float(a["cy"] or 0) for a in attributes(page, "circle", "dot")]
    # Six dots of the overlaps come first.
    heights = [(222 - y) / (210 / 6) - 2 for y in dots[6:26]]
    # Bin 15: 10^(3 - 5) = 0.01 is 3 units above zero. Bin 0: 10^-5 is a tenth of a unit.
    assert heights[15] == pytest.approx(3, abs=0.01)
    assert heights[0] == pytest.approx(0.1, abs=0.01)
    # Bin 3 falls: -10^(0.6 - 5) = -10^-4.4, that is -10^-0.4 = -0.398 units
    assert heights[3] == pytest.approx(-0.398, abs=0.01)
    assert "15 to 20 % (base 0.15 to 0.2 nats): -3.98e-5 nats [-0.001, 0.1], 250 tokens" in (
        page.titles()
    )
    for tick in ("−10⁻⁴", "0", "10⁻⁴", "10⁻³", "0.01", "0.1"):
        assert tick in page.texts["text"]


def test_checkpoints_without_steps_stand_in_their_order(tmp_path: Path) -> None:
    nodes = [{"name": n, "step": None, "path": n} for n in ("base", "one", "two")]
    page = page_of(
        write_analysis(tmp_path / "run", words=None, dynamics={**DYNAMICS, "checkpoints": nodes})
    )
    assert "checkpoint, in the order given" in page.texts["text"]
    assert "checkpoint 1: 93.8\u00a0% [92.5, 95.0] shared with the base" in page.titles()


def test_intervals_that_could_not_be_taken_are_left_out(tmp_path: Path) -> None:
    column = [interval(1.0), {"value": 0.9375, "low": None, "high": None}, None]
    run = write_analysis(
        tmp_path / "run", words=None, dynamics={**DYNAMICS, "overlap_with_base": column}
    )
    assert "step_00020 – 100.0 %" in (page_of(run).words("dynamics"))
    write_json(run / "analysis" / "dynamics.json", {**DYNAMICS, "overlap_with_base": column[:2]})
    with pytest.raises(RunError, match="overlap_with_base needs one entry for each checkpoint"):
        page_of(run)


# ---- temperature and branching ------------------------------------------------------------------


def test_temperatures_show_the_files_numbers(tmp_path: Path) -> None:
    page = page_of(write_analysis(tmp_path / "run", words=None, temperature=TEMPERATURE))
    text = page.words("temperature")
    assert "above 0.5 nats, the 80th percentile (20.0 % of the tokens), are drawn" in text
    assert "100 problems with 4 answers each" in text
    # 0.25 - 0.5 = -0.25 with 0.03125 on either side; 0.03125 * 100 = 3.125
    assert "forks 0 25.0 % [20.0, 30.0] −25.0 [−28.1, −21.9] 64 12.5 %" in text
    assert "rest 5 10.0 % [5.0, 15.0] −40.0 [−43.1, −36.9] 64 12.5 %" in text
    # 0 to 5 from pixel 44 to 364: linear to 0.2 (one unit), then a unit a factor of ten.
    units = {0: 0.0, 1: 1 + math.log10(5), 5: 1 + math.log10(25)}
    found = {a["cx"] for a in attributes(page, "circle", "dot")}
    # The two lines stand 3 pixels apart.
    assert found == {
        pixels(44 + 320 * u / units[5] + d) for u in units.values() for d in (-1.5, 1.5)
    }
    assert "forks, temperature 5: 40.0\u00a0% [35.0, 45.0]" in page.titles()


def test_branching_shows_the_files_numbers(tmp_path: Path) -> None:
    page = page_of(write_analysis(tmp_path / "run", words=None, branching=BRANCHING))
    text = page.words("branching")
    assert "At 2 positions of high and 1 of low entropy" in text
    assert "finished 8 times" in text
    assert "48,000 of 50,000 tokens were spent" in text
    assert "high 2 0.25 [0.12, 0.38]" in text
    assert "low 1 0.00 [−0.06, 0.06]" in text
    assert "high − low 0.25 [0.12, 0.38]" in text
    # Drawn again: a quarter of it in the fixture
    assert "high 2 0.062 [0.031, 0.094]" in text
    assert "high − low 0.062 [0.031, 0.094]" in text
    # Largest first: 0.25 -> 0.875, 0.5 -> 0.125, 0.5 -> 0.5; ln p = -0.693 is a half.
    order = [
        "␣If → ␣so 0.5 1.25 0.25 0.875 +0.625",
        "if → ␣so 0.5 1.25 0.5 0.125 −0.375",
        "if → ␣so 0.5 0.01 0.5 0.5 +0",
    ]
    assert " ".join(order) in text
    titles = page.titles()
    assert "␣If → ␣so: 0.25 → 0.875, 1.25 nats (p1, answer 0, position 3)" in titles
    # The largest gap, 0.625, is the reach: -0.625 to 0.625 from pixel 76 to 448.
    dots = {a["cx"] for a in attributes(page, "circle", "dot") if a.get("r") == "3.2"}
    assert dots == {pixels(448), pixels(262 - 0.375 / 0.625 * 186), pixels(262)}


def test_dots_of_near_gaps_do_not_hide_each_other(tmp_path: Path) -> None:
    positions = [{**BRANCHING["positions"][2], "position": i} for i in range(9)]
    run = write_analysis(
        tmp_path / "run", words=None, branching={**BRANCHING, "positions": positions}
    )
    dots = [a for a in attributes(page_of(run), "circle", "dot") if a.get("r") == "3.2"]
    assert len({(a["cx"], a["cy"]) for a in dots}) == 9
    heights = sorted(float(a["cy"] or 0) for a in dots)
    # Four on each side of the middle, one dot's width of 6.4 apart
    assert heights[-1] - heights[0] == pytest.approx(8 * 6.4, abs=0.2)


# ---- the page -----------------------------------------------------------------------------------


def test_every_section_has_an_address_and_stands_in_the_contents(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "run", metrics=[{"step": 1, "eval/accuracy": 0.5}], rows={1: [make_row()]}
    )
    write_analysis(
        run, summary=SUMMARY, dynamics=DYNAMICS, temperature=TEMPERATURE, branching=BRANCHING
    )
    page = page_of(run)
    anchors = [a["id"] for tag, a in page.elements if tag == "section"]
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert len(anchors) == len(set(anchors)) == 11
    assert links[2 : 2 + len(anchors)] == [f"#{anchor}" for anchor in anchors]
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link} <= set(ids)


def hostile(value: Any) -> Any:
    """The same JSON with every text an attack."""
    if isinstance(value, str):
        return " ".join(HOSTILE)
    if isinstance(value, list):
        return [hostile(v) for v in value]
    return {k: hostile(v) for k, v in value.items()} if isinstance(value, dict) else value


def test_hostile_analyses_add_no_element_to_the_page(tmp_path: Path) -> None:
    files = {
        "summary": {**SUMMARY, **LAB_TRUTH},
        "dynamics": DYNAMICS,
        "temperature": TEMPERATURE,
        "branching": BRANCHING,
    }
    plain = page_of(write_analysis(tmp_path / "a" / "plain", store=[[["wait", " so"]]], **files))
    words = [(text, 200 - i, 1.0, 2.0) for i, text in enumerate(HOSTILE)]
    bad = write_analysis(
        tmp_path / "b" / "bad",
        words=words,
        store=[[[*HOSTILE, "end"]]],
        **{name: hostile(value) for name, value in files.items()},
    )
    arms = [{"label": text, **interval(0.5), "n": 1} for text in HOSTILE]
    write_json(bad / "ablation.json", {"arms": arms})
    page = page_of(bad)
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements}
    assert len([1 for tag, _ in page.elements if tag == "script"]) == 2
    hidden = "[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
    assert not re.search(hidden, page.source)
    assert "<script>window.hacked = 1</script>" in page.words("forks")
    assert "<script>window.hacked = 1</script>" in page.words("branching")
