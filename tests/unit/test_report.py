"""The report's numbers are the files' numbers, and hostile text stays text."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.errors import RunError
from forkpoint.report import build_report
from forkpoint.report.charts import Interval, interval_chart
from forkpoint.report.curves import (
    MOST_LINE_POINTS,
    Series,
    apart,
    curve_chart,
    running_mean,
    thinned,
)
from forkpoint.report.data import StepRows, bin_edges, entropy_profile, token_table
from forkpoint.report.provenance import leaves
from forkpoint.report.svg import tick_labels, ticks
from forkpoint.report.text import number, percent, script_json, three_figures, visible
from forkpoint.report.tokens import COLOUR_EDGES, SHOWN_PER_GROUP, choose, is_right, words
from forkpoint.runs import RolloutRow
from forkpoint.runs.atomic import write_json
from tests.report_runs import HOSTILE, hostile_run, make_row, make_run

# ---- reading a page -----------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would make of a page: elements, the text of each kind, attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag][-1] += data

    def words(self) -> str:
        return " ".join(" ".join(self.texts["body"]).split())

    def payload(self) -> dict[str, Any]:
        return json.loads(self.texts["script"][0])

    def titles(self) -> list[str]:
        return self.texts["title"]


def page_of(*runs: Path, **settings: Any) -> Page:
    return Page(build_report(runs, runs[0].parent / "report.html", **settings))


# ---- numbers by hand ----------------------------------------------------------------------------


def test_histogram_counts_by_hand() -> None:
    # Highest 0.1 -> bins of 0.025: [0, .025) [.025, .05) [.05, .075) [.075, .1]
    step = StepRows(step=1, rows=[make_row(tokens="abcde", entropies=[0, 0.02, 0.025, 0.08, 0.1])])
    edges = bin_edges(0.1)
    assert edges.tolist() == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])
    assert entropy_profile(step, edges, None).counts == (2, 1, 0, 2)


@given(st.floats(0, 30))
def test_bins_hold_every_entropy(maximum: float) -> None:
    edges = bin_edges(maximum)
    assert edges[0] == 0
    assert edges[-1] >= maximum * (1 - 1e-9)
    assert len(edges) <= 81


def test_profile_by_hand() -> None:
    values = [0.0, 0.005, 0.015, 0.285, 0.3, 1.395]
    rows = [
        make_row(tokens="abc", entropies=values[:3]),
        make_row(tokens="def", entropies=values[3:]),
    ]
    profile = entropy_profile(StepRows(step=4, rows=rows), bin_edges(1.395), 0.25)
    assert profile.tokens == 6
    assert profile.mean == pytest.approx(2.0 / 6)
    # Rank q (n - 1): 2.5 -> between 0.015 and 0.285; 4 -> 0.3; 4.75 -> 0.3 + 0.75 (1.395 - 0.3)
    assert (profile.p50, profile.p80) == pytest.approx((0.15, 0.3))
    assert profile.p95 == pytest.approx(0.3 + 0.75 * 1.095)
    assert profile.share_below_001 == pytest.approx(2 / 6)
    # ceil(6 / 5) = 2 tokens: (1.395 + 0.3) / 2.0
    assert profile.share_of_top_fifth == pytest.approx(1.695 / 2.0)
    assert profile.threshold == 0.25


def test_token_table_by_hand() -> None:
    rows = [
        make_row(
            tokens=["x", "y", "x"],
            ids=[7, 8, 7],
            entropies=[1.0, 0.1, 2.0],
            selected=[True, False, False],
        ),
        make_row(tokens=["x", "z"], ids=[7, 9], entropies=[3.0, 9.0], accepted=False),
        make_row(tokens=["y"], ids=[8], entropies=[0.3]),
    ]
    x, y = token_table(StepRows(step=1, rows=rows), minimum=2)  # z occurs once
    assert (x.text, x.token_id, x.count, x.mean) == ("x", 7, 3, 2.0)
    assert x.p90 == pytest.approx(2.8)  # rank 0.9 * 2 = 1.8: 2 + 0.8 (3 - 2)
    assert x.share_selected == 0.5  # of the two in the accepted group
    assert (y.text, y.count, y.share_selected) == ("y", 2, 0.0)
    assert y.mean == pytest.approx(0.2)


def test_unknown_entropies_are_left_out_of_every_number() -> None:
    rows = [make_row(entropies=None), make_row(tokens="ab", entropies=[math.nan, 0.5], ids=[1, 2])]
    step = StepRows(step=1, rows=rows)
    assert step.entropies().tolist() == [0.5]
    assert [line.token_id for line in token_table(step, 1)] == [2]


@pytest.mark.parametrize(
    ("parts", "reward", "right"),
    [
        ({"task": 1.0, "format": 0.0}, 0.5, True),
        ({"task": 0.5, "format": 1.0}, 1.5, False),
        ({"task": None}, None, None),
        ({}, 1.0, True),
        ({}, None, None),
    ],
)
def test_right_means_the_first_part_gave_full_marks(
    parts: dict[str, float | None], reward: float | None, right: bool | None
) -> None:
    assert is_right(make_row(reward=reward, reward_parts=parts)) is right


def test_numbers_in_words() -> None:
    assert [number(v) for v in (0, 0.0451234, 61.22, 17655, 2.68e-13, 2e7, None)] == [
        "0", "0.0451", "61.2", "17655", "2.68e-13", "2.00e7", "–",
    ]  # fmt: skip
    assert [three_figures(v) for v in (0, 0.67, 61.0, 99.96, 109.0, 4222.4, 2e-7)] == [
        "0", "0.670", "61.0", "100", "109", "4222", "2.00e-7",
    ]  # fmt: skip
    assert [percent(v) for v in (0.18555, 1.0, None)] == ["18.6\u00a0%", "100.0\u00a0%", "–"]


# ---- the sample ---------------------------------------------------------------------------------


def group(serial: int, rewards: list[float | None], step: int, **fields: Any) -> list[RolloutRow]:
    return [
        make_row(serial, sample, step=step, reward=reward, **fields)
        for sample, reward in enumerate(rewards)
    ]


def test_sample_takes_the_last_step_first_and_mixed_groups_first() -> None:
    same, mixed = [0.0, 0.0], [0.0, 1.0]
    steps = [
        StepRows(step=s, rows=group(0, same, s) + group(1, mixed, s) + group(2, mixed, s))
        for s in (1, 9)
    ]
    chosen = choose(steps, completions=8)  # 4 of each step: two groups of two
    assert [(g.shown[0].step, g.shown[0].serial) for g in chosen] == [
        (9, 1),
        (9, 2),
        (1, 1),
        (1, 2),
    ]
    everything = choose(steps, completions=100)
    assert [g.shown[0].serial for g in everything] == [1, 2, 0, 1, 2, 0]


def test_a_large_group_shows_right_wrong_and_truncated_ones() -> None:
    rows = group(0, [0.0] * 10, 1)
    rows.append(make_row(0, 10, reward=1.0))
    rows.append(make_row(0, 11, reward=0.0, finish_reason="length"))
    (chosen,) = choose([StepRows(step=1, rows=rows)], completions=60)
    # Turn one: samples 0 (wrong), 10 (right), 11 (truncated); then wrong ones only.
    assert [row.sample for row in chosen.shown] == [0, 1, 2, 3, 10, 11]
    assert len(chosen.everything) == 12


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0, None]), min_size=1, max_size=9), max_size=6),
    st.integers(0, 40),
)
def test_sample_is_never_larger_than_asked(groups: list[list[float | None]], limit: int) -> None:
    rows = [row for serial, rewards in enumerate(groups) for row in group(serial, rewards, 1)]
    chosen = choose([StepRows(step=1, rows=rows), StepRows(step=2, rows=rows)], limit)
    assert sum(len(g.shown) for g in chosen) <= limit
    assert all(0 < len(g.shown) <= SHOWN_PER_GROUP for g in chosen)


def test_the_page_stops_at_its_token_budget() -> None:
    long = ["t"] * 5000  # 4000 of each are shown; 15 such completions are 60 000 tokens
    rows = [
        make_row(s, i, tokens=long, entropies=None, reward=float(i))
        for s in range(9)
        for i in (0, 1)
    ]
    chosen = choose([StepRows(step=1, rows=rows)], completions=60)
    assert sum(len(g.shown) for g in chosen) == 14  # a group of two more would be 64 000


# ---- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "text", "expected"),
    [
        (["pick", "n7", "<eos>"], "pick n7", ["pick", " n7", "<eos>"]),
        (["The", " cat", ".\n", "\n"], "The cat.\n\n", ["The", " cat", ".\n", "\n"]),
        (["caf", "\ufffd", "\ufffd", " ok"], "café ok", ["caf", "é", "·", " ok"]),
        (["\ufffd", "\ufffd", "\ufffd"], "中", ["中", "·", "·"]),
        (["\ufffd", "!"], "\ufffd!", ["\ufffd", "!"]),
        (["", "a"], "a", ["", "a"]),
    ],
)
def test_words_stand_as_in_the_text(tokens: list[str], text: str, expected: list[str]) -> None:
    assert words(tokens, text) == expected


@given(st.lists(st.tuples(st.sampled_from(["", " ", "\n", "  "]), st.text("abc ", min_size=1))))
def test_words_put_together_are_the_text(pieces: list[tuple[str, str]]) -> None:
    text = "".join(gap + token.strip() for gap, token in pieces if token.strip())
    tokens = [token.strip() for _, token in pieces if token.strip()]
    assert "".join(words(tokens, text)) == text


# ---- hostile text -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\nb", "a\nb"),
        ("\x00\t\x7f", "␀␉␡"),
        ("\u202eabc\u2028", "⟨U+202E⟩abc⟨U+2028⟩"),
        ("\ud800", "\ufffd"),
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
    page = page_of(hostile_run(tmp_path / "hostile"), completions=1000)
    plain = page_of(make_run(tmp_path / "plain", rows={1: group(0, [0.0, 1.0] * 6, 1)}))
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in plain.elements}
    assert [a for tag, a in page.elements if tag == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
    ]
    assert page.texts["script"][1] == read_asset("report.js")
    shown = {entry[1] for entry in page.payload()["vocabulary"]}
    assert {visible(text, newline="↵") for text in HOSTILE} <= shown
    assert {g["prompt"] for g in page.payload()["groups"]} == {visible(text) for text in HOSTILE}
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
    assert references == {"#completions", "data:,"}
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


def test_tokens_of_the_file_stand_in_the_payload(tmp_path: Path) -> None:
    rows = {
        1: [
            make_row(
                3,
                0,
                tokens=["go", "left", "<eos>"],
                ids=[5, 6, 1],
                completion="go left",
                entropies=[0.123456, 1.5, 0.0],
                logprobs=[-0.111111, -2.0, 0.0],
                selected=[False, True, False],
                advantage=-1.25,
                prompt="where?",
            ),
            make_row(3, 1, tokens=["go"], ids=[5], entropies=[0.5], logprobs=[-1.0], reward=0.0),
        ]
    }
    payload = page_of(make_run(tmp_path / "run", rows=rows)).payload()
    (group,) = payload["groups"]
    assert (group["prompt"], group["id"], group["step"]) == ("where?", "p3", 1)
    assert group["all"] == [[0, True, True], [1, False, True]]
    first = group["completions"][0]
    assert [payload["vocabulary"][w] for w in first["word"]] == [
        ["go", "go", 5],
        [" left", "left", 6],
        ["<eos>", "<eos>", 1],
    ]
    assert first["entropy"] == [0.1235, 1.5, 0]
    assert first["logprob"] == [-0.1111, -2, 0]
    # Of the step's 4 tokens (0, 0.12, 0.5, 1.5), this many are lower: 1, 3, 0.
    assert first["percentile"] == [25, 75, 0]
    assert first["selected"] == "010"
    assert (first["advantage"], first["reward"], first["right"]) == (-1.25, 1, True)
    assert first["mean"] == pytest.approx((0.123456 + 1.5) / 3, rel=1e-4)


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
    # Step 1: p50 (.015625 + .0625) / 2; p80, rank 2.4: .0625 + .4 * .03125; p95: rank 2.85.
    for mark in ("p50 0.0391", "p80 0.075", "p95 0.0891", "threshold 0.055"):
        assert mark in drawn
    assert sum(text.startswith("threshold") for text in drawn) == 1  # step 7 logged none
    # ceil(4 / 5) = 1 token holds .09375 of .171875; in step 7 it is .0703125 of .1328125.
    assert page.words().count("54.5 %") == 1
    assert page.words().count("52.9 %") == 1


def summary(before: float, after: float, control: float) -> dict[str, Any]:
    return {
        f"accuracy_{name}": {"value": v, "low": v - 0.05, "high": v + 0.05, "n": 512}
        for name, v in (("before", before), ("after", after), ("control", control))
    }


def test_a_demo_shows_its_finding_and_its_control(tmp_path: Path) -> None:
    config = {"training": {"steps": 2}}
    rest = {"selection": {"rule": "bottom", "keep_fraction": 0.8}, **config}
    lines = [{"step": s, "reward/mean": s / 10} for s in (1, 2)]
    demo = make_run(tmp_path / "demo", metrics=lines, config=config)
    make_run(demo / "control", metrics=[{"step": 1, "reward/mean": 0.7}], config=rest)
    write_json(demo / "summary.json", summary(0.186, 0.353, 0.141))
    page = page_of(demo)
    # Words and figures are drawn twice, for wide and for narrow screens.
    for text in ("18.6\u00a0%", "[13.6, 23.6]", "35.3\u00a0%", "14.1\u00a0%", "[9.1, 19.1]"):
        assert page.texts["text"].count(text) == 2
    assert "trained on the 80\u00a0% of tokens with the lowest entropy" in page.texts["text"]
    assert "n = 512 problems" in page.words()
    assert "control, step 1: 0.7" in page.titles()
    assert "2 steps of 24 prompts with 12 answers each" in page.words()
    assert 'selection.rule"top""bottom"' in page.words()


def test_without_a_summary_the_evaluations_are_the_finding(tmp_path: Path) -> None:
    def evaluated(step: int, value: float) -> dict[str, Any]:
        ends = {"eval/accuracy_low": 0.0, "eval/accuracy_high": value + 0.125}
        return {"step": step, "eval/accuracy": value, "eval/problems": 64, **ends}

    a = make_run(tmp_path / "a", metrics=[evaluated(0, 0.25), evaluated(5, 0.5)])
    b = make_run(tmp_path / "b", metrics=[evaluated(0, 0.25), evaluated(6, 0.375)])
    page = page_of(a, b)
    for text in ("before training", "a, step 5", "b, step 6"):
        assert page.texts["text"].count(text) == 2
    assert page.texts["text"].count("[0.0, 62.5]") == 2
    assert "n = 64 problems" in page.words()


def test_overlaid_runs_differ_in_colour_and_in_dash() -> None:
    band = [(0, 0.0, 1.0), (1, 0.0, 2.0)]
    series = [
        Series(label=str(i), index=i, points=[(0, float(i)), (1, 1.0)], band=band) for i in range(6)
    ]
    svg = str(curve_chart("x", series, steps=(0, 1)))
    css = read_asset("report.css")
    styles = re.findall(r"\.(s\d) \{ --c: (\S+); --dash: ([^;]+);", css)
    assert len({colour for _, colour, _ in styles}) == len({dash for *_, dash in styles}) == 6
    for name, _, _ in styles:
        for part in ("band", "line", "dots", "value"):
            assert svg.count(f'class="{part} {name}"') == 1


def test_runs_of_the_same_name_get_different_labels(tmp_path: Path) -> None:
    a = make_run(tmp_path / "x" / "run", rows={1: [make_row()]})
    b = make_run(tmp_path / "y" / "run")
    make_run(a / "control")
    make_run(b / "control")
    key = [text.strip() for text in page_of(a, b).texts["li"][:4]]
    assert key == ["run", "control", "y/run", "y/run/control"]
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
    with pytest.raises(RunError, match=r"empty holds no metrics\.jsonl"):
        build_report([tmp_path / "empty"], out)
    run = make_run(tmp_path / "run")
    (run / "summary.json").write_text('{"accuracy_before": {"value": 1}}')
    with pytest.raises(RunError, match=r"summary\.json: accuracy_before needs"):
        build_report([run], out)
    (run / "summary.json").write_text("[]")
    with pytest.raises(RunError, match=r"summary\.json is not a JSON object"):
        build_report([run], out)
    (run / "summary.json").write_text("{")
    with pytest.raises(RunError, match="cannot read"):
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
    assert "script" not in page.texts


def test_rollouts_without_entropies_are_shown_without_colours(tmp_path: Path) -> None:
    rows = {1: [make_row(entropies=None), make_row(0, 1, entropies=None, reward=0.0)]}
    page = page_of(make_run(tmp_path / "run", rows=rows))
    assert "hold no entropies" in page.words()
    assert "No entropies were recorded." in page.words()
    assert page.payload()["groups"][0]["completions"][0]["entropy"] == [None, None]


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", metrics=[{"step": 1, "reward/mean": 0.5}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "reward/me')
    assert [t for t in page_of(run).titles() if ", step " in t] == ["run, step 1: 0.5"]


def test_a_demo_sized_page_is_small(tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def rows(step: int) -> list[RolloutRow]:
        return [
            make_row(
                serial,
                sample,
                step=step,
                tokens=[f"w{i}" for i in ids],
                ids=ids.tolist(),
                entropies=random.exponential(0.2, 100).tolist(),
                logprobs=(-random.exponential(0.2, 100)).tolist(),
                reward=float(sample % 2),
            )
            for serial in range(10)
            for sample in range(12)
            for ids in [random.integers(0, 128, 100)]
        ]

    metrics = [{"step": s, "reward/mean": random.random()} for s in range(2000)]
    run = make_run(tmp_path / "demo", metrics=metrics, rows={1: rows(1), 25: rows(25)})
    page = page_of(run)
    assert sum(len(g["completions"]) for g in page.payload()["groups"]) == 60
    assert len(page.source.encode()) < 1_000_000


# ---- charts -------------------------------------------------------------------------------------


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


# ---- colours ------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """WCAG 2 relative luminance of ``#rrggbb`` or ``#rgb``."""
    digits = colour.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * c for c in digits)
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_token_colours_are_ordered_by_lightness_and_readable(scheme: int) -> None:
    """Lightness alone orders the classes, so that no colour vision is needed."""
    css = read_asset("report.css").split("prefers-color-scheme: dark")[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", css))
    ramp = [colours["paper"], *(colours[f"h{i}"] for i in range(1, len(COLOUR_EDGES) + 1))]
    lightness = [luminance(c) for c in ramp]
    assert lightness == sorted(lightness, reverse=scheme == 0)
    inks = [colours["ink"]] + [colours["on-low"]] * 4 + ["#161614"] * 2 + [colours["on-high"]] * 2
    assert min(contrast(a, b) for a, b in zip(ramp, inks, strict=True)) >= 4.5
    for name in ("ink", "soft", "s0", "s1", "s2", "s3", "s4", "s5"):
        assert contrast(colours[name], colours["paper"]) >= 4.5


def test_leaves_of_a_configuration() -> None:
    assert leaves({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}
