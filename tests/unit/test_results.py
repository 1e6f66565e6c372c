"""Result files: what is written is read back, and what is no result is refused in one line."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from forkpoint.errors import RunError
from forkpoint.runs import results
from forkpoint.runs.ablation import Ablation
from forkpoint.runs.evaluation import Benchmarks, Comparison
from forkpoint.runs.results import (
    Demo,
    Estimate,
    Evaluation,
    Result,
    find_result,
    read_result,
    write_result,
)

HALF = Estimate(value=0.5, low=0.4, high=0.6, n=9)
DEMO = Demo(accuracy_before=HALF, accuracy_after=HALF, accuracy_control=HALF)
MODELS = [
    model
    for model in (*vars(results).values(), Ablation, Benchmarks, Comparison)
    if isinstance(model, type) and issubclass(model, Result) and model is not Result
]


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert find_result(tmp_path, Demo) is None
    path = write_result(tmp_path, DEMO)
    assert path == tmp_path / "results" / "demo.json"
    assert read_result(path, Demo) == find_result(tmp_path, Demo) == DEMO


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "cannot read .*demo.json: Expecting"),
        ("[]", "demo.json is not a result of forkpoint: Input should be a valid dictionary"),
        ("{}", "demo.json has schema version none, and this forkpoint reads 1: read it with"),
        ('{"schema_version": 2}', "demo.json has schema version 2, and this forkpoint reads 1"),
        ('{"schema_version": 1}', "demo.json is not a result of forkpoint: accuracy_before: Field"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "demo.json"
    path.write_text(text)
    with pytest.raises(RunError, match=fault) as caught:
        read_result(path, Demo)
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="cannot read"):
        read_result(tmp_path, Demo)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "much"])
def test_a_value_is_a_finite_number(tmp_path: Path, value: object) -> None:
    stored = DEMO.model_dump()
    stored["accuracy_after"]["value"] = value
    (tmp_path / "demo.json").write_text(json.dumps(stored))
    with pytest.raises(RunError, match=r"forkpoint: accuracy_after\.value: Input should be"):
        read_result(tmp_path / "demo.json", Demo)


def test_every_kind_has_a_file_of_its_own_and_the_same_version() -> None:
    assert len({model.file for model in MODELS}) == len(MODELS) >= 7
    versions = {model.model_fields["schema_version"].default for model in MODELS}
    assert versions == {results.SCHEMA_VERSION}


def test_an_evaluation_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    stored = {
        "schema_version": 1,
        "model": "m",
        "task": "t",
        "temperature": 1.0,
        "seed": 0,
        "samples": 2,
        "accuracy": HALF.model_dump(),
        "length_mean": 3.5,
    }
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(stored))
    found = read_result(path, Evaluation)
    assert (found.accuracy, found.samples, found.length_mean) == (HALF, 2, 3.5)
    assert (found.pass_at, found.sampling_error, found.problems) == ({}, None, ())


def test_a_matrix_of_verdicts_has_as_many_as_were_drawn(tmp_path: Path) -> None:
    row = {"id": "a", "digest": "d", "right": [True]}
    stored = {
        "schema_version": 1,
        "model": "m",
        "task": "t",
        "temperature": 1.0,
        "seed": 0,
        "samples": 2,
        "accuracy": HALF.model_dump(),
        "length_mean": 3.5,
        "problems": [row],
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(stored))
    with pytest.raises(RunError, match=r"1 problems with \[1\] answers, where .* 9 with 2"):
        read_result(tmp_path / "evaluation.json", Evaluation)


def test_results_do_not_change() -> None:
    with pytest.raises(ValidationError):
        HALF.value = 1.0  # pyright: ignore[reportAttributeAccessIssue]


def test_an_estimate_in_percent() -> None:
    assert HALF.percent() == "50.0 % [40.0, 60.0]"
    alone = Estimate(value=0.5, low=None, high=None, n=1)
    assert (alone.percent(), alone.interval) == ("50.0 %", None)
