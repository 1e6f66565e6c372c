"""The committed result of ``make bench`` says what its own raw numbers say."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import admission, bench, long_rows
from benchmarks.bench import RESULTS, capture_overhead, headline
from benchmarks.tables import markdown
from benchmarks.workloads import workload
from forkpoint.config.stages import ModelConfig
from forkpoint.policy import load_model


@pytest.fixture
def result() -> dict[str, Any]:
    return json.loads((RESULTS / "latest.json").read_text())


def test_the_headline_is_computed_from_the_raw_numbers(result: dict[str, Any]) -> None:
    assert {name: result[name] for name in result["headline"]} == headline(result["raw"])


def test_the_tables_are_of_this_result(result: dict[str, Any]) -> None:
    assert (RESULTS / "latest.md").read_text() == markdown(result)


def test_capture_overhead() -> None:
    # 1 of 11 seconds is 1 over the other 10; 1 of 5 is 1 over 4; 2 of 12 is 2 over 10
    sampling = {"capture_seconds": [1.0, 1.0, 2.0], "engine_seconds": [11.0, 5.0, 12.0]}
    assert capture_overhead(sampling) == pytest.approx(0.2)


def test_trl_without_flat_groups_is_measured_into_the_result_that_is_there(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def run(module: str, *arguments: Any) -> dict[str, Any]:
        commands.append((module, *arguments))
        return {"seconds": [30.0] if module == "trl_step" else [12.0, 12.0]}

    monkeypatch.setattr(bench, "run", run)
    (tmp_path / "latest.json").write_text(json.dumps(result))
    bench.again("without_flat", tmp_path)
    after = json.loads((tmp_path / "latest.json").read_text())
    again = "trl_without_flat_over_sparse_time_half_zero"
    assert after[again] == 2.5
    assert after["again"].keys() == result.get("again", {}).keys() | {"without_flat"}
    before = headline(result["raw"])
    assert all(after[name] == value for name, value in before.items() if name != again)
    row = "| half_zero, TRL without flat groups | 30 |  | 12 |"
    assert row in (tmp_path / "latest.md").read_text().splitlines()
    # in turns, TRL at the batch size that was fastest
    assert [module for module, *_ in commands] == ["trl_step", "ours"] * 2
    flat = ("--workload", "half_zero", "--without-flat")
    assert commands[0] == ("trl_step", *flat, "--batch-size", 4)


def test_half_of_the_groups_of_half_zero_teach() -> None:
    assert [group.teaches for group in workload("half_zero")] == [True, True, False, False]


def test_long_rows_are_measured_and_told_by_the_token() -> None:
    row = long_rows.measure(length=256, checkpointing=True, gradient="sparse")
    assert row["seconds"] > 0
    # 1 GB and 10^8 bytes of gradients: 900 kB a token
    told = {**row, "length": 1000, "peak_gb": 1.0, "parameters": 25_000_000, "seconds": 2.0}
    assert long_rows.table([told]).splitlines()[-1] == (
        "| sparse, checkpointing | 1000 | 1.00 | 900.0 | 2.0 |"
    )


def test_both_ways_of_admission_are_clocked() -> None:
    loaded = load_model(ModelConfig(path="lab:game"))
    requests = admission.lab_requests(loaded, 5)
    row = admission.measure(loaded, requests, 2, 1)
    assert row["ratios"] == [row["whole_s"] / row["admitted_s"]]
    assert row["tokens"] > 5
