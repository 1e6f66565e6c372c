"""``python -m benchmarks.gpu``, tried at toy sizes on the CPU."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import run
from benchmarks.gpu.device import Device
from benchmarks.gpu.lines import Lines, Skip

ROOT = Path(__file__).parents[2]

NOT_NEEDED = ("pyarrow", "pebble", "scipy", "rich", "cyclopts", "jinja2", "datasets", "trl")

WITHOUT = f"""
import runpy, sys
for name in {NOT_NEEDED}:
    sys.modules[name] = None
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


def printed(text: str) -> list[dict[str, Any]]:
    """The lines after the first, which tells of the machine."""
    first, *lines = map(json.loads, text.splitlines())
    assert {"device", "python", "versions", "git", "driver"} <= first.keys()
    return lines


def numbers(line: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in line.items() if isinstance(v, int | float)}


def test_every_stage_runs_with_nothing_but_torch_and_transformers(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "--device", "cpu", "--tiny", "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = printed(done.stdout)
    assert json.loads(out.read_text())["lines"] == lines

    for stage in run.STAGES:
        assert any(x["stage"] == stage and x["status"] == "ok" for x in lines), stage
    skipped = {x["measure"] for x in lines if x["status"] == "skipped"}
    assert all("flex" in name or "TRL" in name for name in skipped)
    assert {x["status"] for x in lines} == {"ok", "skipped"}

    bounded = [x for x in lines if "bounds" in x]
    assert len(bounded) >= 7
    for line in bounded:
        assert all(line[name] <= most for name, most in line["bounds"].items()), line
    for line in lines:
        assert all(map(math.isfinite, numbers(line).values())), line
        assert "nan" not in line.values()


def test_what_fails_or_does_not_fit_is_a_line_and_the_next_measure_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def raises(error: Exception) -> Any:
        def call() -> dict[str, Any]:
            raise error

        return call

    def first(lines: Lines, device: Device) -> None:
        lines.measure("no kernel", raises(RuntimeError("no kernel\nfor this")))
        lines.measure("large", raises(torch.OutOfMemoryError("tried to allocate 90 GB")))
        lines.measure("not here", raises(Skip("a reason")))
        lines.measure("not a number", lambda: {"loss": math.nan})
        lines.measure("far off", lambda: {"gap": 2.0, "bounds": {"gap": 1.0}})
        raise ValueError("between two measures")

    def second(lines: Lines, device: Device) -> None:
        lines.measure("fine", lambda: {"gap": 0.5, "bounds": {"gap": 1.0}})

    monkeypatch.setattr(run, "STAGES", {"a": first, "b": second})
    out = tmp_path / "gpu.json"
    assert run.main(["--device", "cpu", "--tiny", "--stages", "a,b", "--out", str(out)]) == 1
    lines = printed(capsys.readouterr().out)
    assert [(x["stage"], x["measure"], x["status"]) for x in lines] == [
        ("a", "no kernel", "failed"),
        ("a", "large", "out of memory"),
        ("a", "not here", "skipped"),
        ("a", "not a number", "wrong"),
        ("a", "far off", "wrong"),
        ("a", "between measures", "failed"),
        ("b", "fine", "ok"),
    ]
    assert lines[0]["error"] == "RuntimeError: no kernel"
    assert lines[2]["reason"] == "a reason"
    assert lines[3]["loss"] == "nan"
    assert json.loads(out.read_text())["lines"] == lines


def test_an_exhausted_budget_skips_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "gpu.json")
    assert run.main(["--device", "cpu", "--tiny", "--minutes", "0", "--out", out]) == 0
    lines = printed(capsys.readouterr().out)
    assert {x["stage"] for x in lines} == set(run.STAGES)
    assert {x["status"] for x in lines} == {"skipped"}
    assert all("0 s are left" in x["reason"] for x in lines)


def test_a_measure_that_takes_longer_than_what_is_left_is_skipped() -> None:
    kept: list[dict[str, Any]] = []
    lines = Lines(Device("cpu", tiny=True), 1.0, kept.extend)
    lines.measure("long", dict, expected_s=100.0)
    assert kept[0]["status"] == "skipped"
    assert kept[0]["reason"].startswith("it may take 100 s and ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "--stages", "a,x"], "no stage 'x'; there are a, b, c, d"),
        pytest.param(
            [],
            "torch sees no CUDA device; to try the benchmark: --device cpu --tiny",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_what_cannot_be_is_said_at_once(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run.main(arguments)
    assert message in capsys.readouterr().err
