"""An ablation's page: its table, what it says of intervals, and where the numbers come from."""

import json
from pathlib import Path
from typing import Any

import pytest

from forkpoint.config import parse_config
from forkpoint.report.finding import what_was_compared
from forkpoint.runs.ablation import Ablation, Arm
from forkpoint.runs.atomic import write_json
from forkpoint.runs.results import write_result
from tests.ablation_result import ABLATION, EVERYTHING, TOP, over
from tests.report_page import Page, page_of
from tests.report_runs import HOSTILE


def page_about(folder: Path, found: Ablation) -> Page:
    folder.mkdir(parents=True)
    write_result(folder, found)
    return page_of(folder)


def test_the_table_has_the_numbers_of_the_file(tmp_path: Path) -> None:
    text = page_about(tmp_path / "mine", ABLATION).words("ablation")
    # Operations: 3e12 / 4e12; tokens: 41.5 - 4
    for row in (
        "all selection.rule=all 62.5 % [31.2, 93.8] reference 1.00 3 of 3 37.5 12.5 % 100.0 %",
        "top20 selection.keep_fraction=0.2 75.0 % [68.8, 81.2] +18.8 [−6.2, +43.8] 0.75 2 of 3 "
        "37.5 12.5 % 20.0 %",
    ):
        assert row in text
    assert "All set training.steps=4." in text
    assert "Not finished with any seed: late." in text
    assert "forkpoint report mine/all/seed_0" in text
    assert "Energy" not in text


def test_the_intervals_are_said_to_be_over_seeds(tmp_path: Path) -> None:
    page = page_about(tmp_path / "mine", ABLATION)
    assert list(page.sections) == ["ablation", "provenance"]
    text = page.words()
    assert "3 variants with 3 seeds each, 5 of 9 runs finished. Reference: all." in text
    assert "95 % intervals over seeds, n = 2, 3 seeds" in text
    assert "Student’s, 95 %, over seeds" in text
    assert "With 2 seeds they are wide." in text
    for wrong in ("problems seeds", "intervals over problems", "nothing was trained", "no config"):
        assert wrong not in text
    assert "Not measured in" not in text


def test_a_missing_interval_and_a_missing_reference_are_said(tmp_path: Path) -> None:
    dash = "A dash in its place: there is one seed, or all ended alike."
    assert dash not in page_about(tmp_path / "whole", ABLATION).words()
    one = Arm(label="top20", seeds=(0,), final=(0.5,), accuracy=over(0.5, None, 1))
    text = page_about(tmp_path / "one", Ablation(arms=(one,))).words("ablation")
    assert dash in text
    assert "No run of the reference is finished, so there are no differences." in text
    assert "top20 50.0 % – – – 1 – – –" in text
    assert "not recorded" in text


def test_the_share_of_energy_is_shown_where_it_was_measured(tmp_path: Path) -> None:
    arms = (EVERYTHING, TOP.model_copy(update={"energy_share": 0.625}))
    text = page_about(tmp_path / "mine", ABLATION.model_copy(update={"arms": arms})).words(
        "ablation"
    )
    assert "Selected Energy" in text
    assert "100.0 % –" in text
    assert "20.0 % 62.5 %" in text


def test_the_sentence_says_what_was_trained() -> None:
    config = parse_config({"task": {"type": "lab"}, "training": {"steps": 4}})
    said = what_was_compared(ABLATION, config)
    assert "starting from the model lab:game: 4 steps of 24 prompts with 12 answers each." in said
    single = ABLATION.model_copy(update={"seeds": (0,)})
    assert what_was_compared(single, None).startswith("3 variants with one seed, 5 of 3 runs")


def test_the_runs_say_where_the_numbers_come_from(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for variant, seed, commit in (("all", 0, "aaa"), ("all", 1, "aaa"), ("top20", 0, "bbb")):
        run = folder / variant / f"seed_{seed}"
        config = parse_config({"training": {"steps": 4 if variant == "all" else 5}})
        write_json(run / "config.json", json.loads(config.model_dump_json()))
        write_json(run / "env.json", {"git": commit, "threads": 1, "device": "cpu"})
    write_json(folder / "recipe.json", {"name": "mine", "overrides": ["optim.lr=1"]})
    write_json(
        folder / "env.json",
        {"schema_version": 2, "command": ["forkpoint", "ablate"], "git": "ccc", "threads": 2},
    )
    write_result(folder, ABLATION)
    page = page_of(folder)
    text = page.words("provenance")
    assert "forkpoint ablate" in text
    assert "git aaa, bbb" in text
    assert "threads 1" in text
    assert "hours of all runs 1.25" in text  # 0.75 + 0.5
    assert 'recipe.json { "name": "mine", "overrides": [ "optim.lr=1" ] }' in text
    assert ": 4 steps of 24 prompts" in page.words()  # of the reference, not of top20
    assert "There is no" not in page.words()


def test_hostile_text_of_an_ablation_is_text(tmp_path: Path) -> None:
    plain = page_about(tmp_path / "a" / "plain", ABLATION)

    def hostile(arm: Arm, text: str) -> Arm:
        return arm.model_copy(update={"label": text, "settings": (text, "shared")})

    first = HOSTILE[1]
    others = tuple(hostile(TOP, text) for text in HOSTILE if text != first)
    found = Ablation(
        reference=first,
        variants=(*HOSTILE, *(f"{text} late" for text in HOSTILE)),
        seeds=(0, 1, 2),
        arms=(hostile(EVERYTHING, first), *others),
    )
    folder = tmp_path / "b" / "bad"
    write_json(folder / "recipe.json", dict.fromkeys(HOSTILE, HOSTILE[0]))
    write_json(folder / HOSTILE[2].replace("/", "") / "seed_0" / "env.json", {"git": HOSTILE[0]})
    page = page_about_there(folder, found)
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements}
    assert len([1 for tag, _ in page.elements if tag == "script"]) == 1
    assert not set("\x00\x07\x1b\x7f\u2028\u2029\u202e") & set(page.source)
    assert "<script>window.hacked = 1</script>" in page.words("ablation")


def page_about_there(folder: Path, found: Ablation) -> Page:
    write_result(folder, found)
    return page_of(folder)


@pytest.mark.parametrize("broken", [{"seeds": [0]}, {"accuracy": None}])
def test_a_broken_result_is_one_line(tmp_path: Path, broken: dict[str, Any]) -> None:
    from forkpoint.errors import RunError

    path = write_result(tmp_path, ABLATION)
    stored = json.loads(path.read_text())
    stored["arms"][0] |= broken
    path.write_text(json.dumps(stored))
    with pytest.raises(RunError, match=r"ablation.json is not a result of forkpoint: arms\.0"):
        page_of(tmp_path)
