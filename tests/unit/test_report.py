"""The report's numbers are the files' numbers, and hostile text stays text."""

import base64
import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.errors import RunError
from forkpoint.figures.text import number, percent, three_figures, visible
from forkpoint.report import build_report
from forkpoint.report.build import SCRIPTS
from forkpoint.report.provenance import leaves
from forkpoint.report.tokens import script_json
from forkpoint.runs.completions import StoredCompletion
from forkpoint.runs.results import Demo, write_result
from tests.analysis_runs import interval
from tests.report_page import page_of
from tests.report_runs import HOSTILE, hostile_run, make_row, make_run

# ---- numbers by hand ----------------------------------------------------------------------------


def test_numbers_in_words() -> None:
    assert [number(v) for v in (0, 0.0451234, 61.22, 17655, 2.68e-13, 2e7, 3e12, None)] == [
        "0", "0.0451", "61.2", "17655", "2.68e-13", "2.00e7", "3.00e12", "–",
    ]  # fmt: skip
    assert [three_figures(v) for v in (0, 0.67, 61.0, 99.96, 109.0, 4222.4, 2e-7)] == [
        "0", "0.670", "61.0", "100", "109", "4222", "2.00e-7",
    ]  # fmt: skip
    assert [percent(v) for v in (0.18555, 1.0, None)] == ["18.6\u00a0%", "100.0\u00a0%", "–"]


def group(
    serial: int, rewards: list[float | None], step: int, **fields: Any
) -> list[StoredCompletion]:
    return [
        make_row(serial, sample, step=step, reward=reward, **fields)
        for sample, reward in enumerate(rewards)
    ]


# ---- hostile text -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\nb", "a\nb"),
        ("\x00\t\x7f", "␀␉␡"),
        ("\u202eabc\u2028", "⟨U+202E⟩abc⟨U+2028⟩"),
        ("\ud800", "\ufffd"),
        ("\uffff\ufffe\ufdd0", "⟨U+FFFF⟩⟨U+FFFE⟩⟨U+FDD0⟩"),
        ("\x85\ufeff\u200b", "⟨U+0085⟩⟨U+FEFF⟩⟨U+200B⟩"),
        ("é 中 👩\u200d🚀", "é 中 👩\u200d🚀"),
    ],
)
def test_what_cannot_be_seen_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters(exclude_categories=[])))
def test_visible_text_can_be_encoded_and_read_back(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u200e\u200f\u2028-\u202e\u2066-\u2069]", shown)


@given(st.recursive(st.text(st.characters(exclude_categories=[])), lambda s: st.lists(s)))
def test_script_json_cannot_leave_its_element(value: Any) -> None:
    text = str(script_json(value))
    assert text.isascii()
    assert not set("<>&\n\r") & set(text)
    assert json.loads(text) == value


def test_hostile_text_adds_no_element_to_the_page(tmp_path: Path) -> None:
    page = page_of(hostile_run(tmp_path / "hostile"))
    plain = page_of(make_run(tmp_path / "plain", rows={1: group(0, [0.0, 1.0] * 6, 1)}))
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in plain.elements}
    assert [a for tag, a in page.elements if tag == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
    ]
    assert page.texts["script"][1] == "\n".join(map(read_asset, SCRIPTS))
    assert {visible(text, newline="↵\n") for text in HOSTILE} <= set(page.payload()["words"])
    (source,) = page.payload()["sources"]
    assert {g["prompt"] for g in source["groups"]} == {visible(text) for text in HOSTILE}
    assert not re.search("[\x00\u2028\u2029\u202e]", page.source)


def test_a_hostile_directory_name_is_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<img src=x onerror=1>&\u202e")
    page = page_of(run, make_run(tmp_path / "other"))
    assert "img" not in {tag for tag, _ in page.elements}
    assert page.texts["h1"] == ["<img src=x onerror=1>&⟨U+202E⟩"]


def read_asset(name: str) -> str:
    return (files("forkpoint.report") / "templates" / name).read_text(encoding="utf-8")


def test_only_the_pages_own_style_and_script_may_run(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", rows={1: group(0, [0.0, 1.0], 1)}))
    (policy,) = [
        a["content"]
        for tag, a in page.elements
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    for directive, text in (
        ("style-src", page.texts["style"][0]),
        ("script-src", page.texts["script"][1]),
    ):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert directives[directive] == f"'sha256-{digest}'"


def test_nothing_is_fetched_and_no_markup_is_made_by_the_script(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", rows={1: group(0, [0.0, 1.0], 1)}))
    references = {
        a[name] for _, a in page.elements for name in ("src", "href", "action", "data") if name in a
    }
    (anchors,) = [{f"#{a['id']}" for tag, a in page.elements if tag == "section"}]
    assert references == {"data:,", "#top", *anchors}
    assert not re.search(r"https?:|//\w|url\(|@import", page.texts["style"][0])
    script = page.texts["script"][1]
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch"):
        assert way not in script
    assert "style" not in {name for _, a in page.elements for name in a}  # the policy forbids it


# ---- the page's numbers -------------------------------------------------------------------------


def test_metrics_of_the_file_stand_on_the_page(tmp_path: Path) -> None:
    metrics = [
        {"step": 1, "reward/mean": 0.1419753, "grad/norm": 0.432582, "entropy/p80": None},
        {"step": 2, "reward/mean": 0.2},
        {"step": 3, "reward/mean": 0.25, "selection/kept_fraction": 0.2},
    ]
    page = page_of(make_run(tmp_path / "run", metrics=metrics))
    assert {
        "run, step 1: 0.141975",
        "run, step 2: 0.2",
        "run, step 3: 0.25",
        "run, step 1: 0.432582",
        "run, step 3: 0.2 (20.0\u00a0%)",  # no threshold: the kept fraction takes its panel
    } == {t for t in page.titles() if ", step " in t}
    assert page.words().count("not recorded") == 5  # of the 8 panels
    (label,) = [
        a["aria-label"] for _, a in page.elements if "Reward" in (a.get("aria-label") or "")
    ]
    assert label == "Reward: run from 0.142 at step 1 to 0.250 at step 3"


def test_histogram_of_the_file_stands_on_the_page(tmp_path: Path) -> None:
    rows = {
        1: [make_row(tokens="abcd", entropies=[0.0, 0.015625, 0.0625, 0.09375])],
        7: [make_row(tokens="ab", entropies=[0.0625, 0.0703125], step=7)],
        4: [make_row(tokens="a", entropies=[5.0], step=4)],  # in between: not read
    }
    metrics = [{"step": 1, "selection/threshold_nats": 0.055}, {"step": 7}]
    page = page_of(make_run(tmp_path / "run", rows=rows, metrics=metrics))
    bars = [t for t in page.titles() if "nats: " in t]
    assert bars == [
        "0 to 0.025 nats: 2 tokens",
        "0.05 to 0.075 nats: 1 token",
        "0.075 to 0.1 nats: 1 token",
        "0.05 to 0.075 nats: 2 tokens",
    ]
    drawn = page.texts["text"]
    # Step 1: of 4 tokens the 2nd smallest is p50; the 4th, ceil(0.8 * 4), is p80 and p95.
    for mark in ("p50 0.0156", "p80 0.0938", "p95 0.0938", "threshold 0.055"):
        assert mark in drawn
    # A name is drawn twice, over its halo; step 7 logged no threshold.
    assert sum(text.startswith("threshold") for text in drawn) == 2
    # ceil(4 / 5) = 1 token holds .09375 of .171875; in step 7 it is .0703125 of .1328125.
    assert page.words().count("54.5 %") == 1
    assert page.words().count("52.9 %") == 1


def test_a_demo_shows_its_finding_and_its_control(tmp_path: Path) -> None:
    config = {"training": {"steps": 2}}
    rest = {"selection": {"rule": "bottom", "keep_fraction": 0.8}, **config}
    lines = [{"step": s, "reward/mean": s / 10} for s in (1, 2)]
    demo = make_run(tmp_path / "demo", metrics=lines, config=config)
    make_run(demo / "control", metrics=[{"step": 1, "reward/mean": 0.7}], config=rest)
    before, after, control = (interval(v, 0.05, 512) for v in (0.186, 0.353, 0.141))
    write_result(demo, Demo(accuracy_before=before, accuracy_after=after, accuracy_control=control))
    page = page_of(demo)
    finding = page.words()
    for text in ("18.6 % [13.6, 23.6]", "35.3 % [30.3, 40.3]", "14.1 % [9.1, 19.1]"):
        assert finding.count(text) == 1
    assert "trained on the 80 % of tokens with the lowest entropy" in finding
    assert "n = 512 problems" in page.words()
    assert "control, step 1: 0.7" in page.titles()
    assert "2 steps of 24 prompts with 12 answers each" in page.words()
    assert 'selection.rule "top" "bottom"' in page.words()


def test_without_a_summary_the_evaluations_are_the_finding(tmp_path: Path) -> None:
    def evaluated(step: int, value: float) -> dict[str, Any]:
        ends = {"eval/accuracy_low": 0.0, "eval/accuracy_high": value + 0.125}
        return {"step": step, "eval/accuracy": value, "eval/problems": 64, **ends}

    a = make_run(tmp_path / "a", metrics=[evaluated(0, 0.25), evaluated(5, 0.5)])
    b = make_run(tmp_path / "b", metrics=[evaluated(0, 0.25), evaluated(6, 0.375)])
    page = page_of(a, b)
    for text in (
        "before training 25.0 % [0.0, 37.5]",
        "step 5 50.0 % [0.0, 62.5]",
        "step 6 37.5 %",
    ):
        assert text in page.words()
    assert "n = 64 problems" in page.words()


def test_runs_of_the_same_name_get_different_labels(tmp_path: Path) -> None:
    a = make_run(tmp_path / "x" / "run", rows={1: [make_row()]})
    b = make_run(tmp_path / "y" / "run")
    make_run(a / "control")
    make_run(b / "control")
    assert "run control y/run y/run/control" in page_of(a, b).words("training")
    # The same directory twice is one run: run and control, each with its config.json.
    assert len(page_of(a, a).texts["summary"]) == 4


# ---- what is missing ----------------------------------------------------------------------------


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    with pytest.raises(RunError, match="at least one"):
        build_report([], out)
    with pytest.raises(RunError, match="nowhere: no such run directory"):
        build_report([tmp_path / "nowhere"], out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"empty holds no metrics\.jsonl and no results"):
        build_report([tmp_path / "empty"], out)
    run = make_run(tmp_path / "run")
    demo = run / "results" / "demo.json"
    demo.parent.mkdir()
    for text, message in (
        ('{"schema_version": 1, "accuracy_before": {"value": 1}}', r"demo\.json.*accuracy_before"),
        ("[]", r"demo\.json"),
        ("{", r"demo\.json"),
    ):
        demo.write_text(text)
        with pytest.raises(RunError, match=message):
            build_report([run], out)
    assert not out.exists()


def test_a_run_that_has_just_begun_still_gets_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", metrics=[])
    (run / "config.json").unlink()
    (run / "env.json").unlink()
    page = page_of(run)
    for text in ("metrics.jsonl is empty", "no config.json", "no env.json", "no rollouts"):
        assert text in page.words()
    assert page.words().count("not recorded") == 8


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", metrics=[{"step": 1, "reward/mean": 0.5}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "reward/me')
    assert [t for t in page_of(run).titles() if ", step " in t] == ["run, step 1: 0.5"]


def test_leaves_of_a_configuration() -> None:
    assert leaves({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


def test_metrics_beyond_drawing_are_left_out(tmp_path: Path) -> None:
    metrics = [{"step": s, "reward/mean": v} for s, v in ((1, 1e308), (2, -1e308), (3, 0.5))]
    page = page_of(make_run(tmp_path / "run", metrics=metrics))
    assert [t for t in page.titles() if ", step " in t] == ["run, step 3: 0.5"]
