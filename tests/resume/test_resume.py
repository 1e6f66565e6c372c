"""A run that was killed and resumed ends with the same bytes as one that was not.

Everything here goes through the real command line in a real process.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SETTINGS = (
    "training.steps=6",
    "training.threads=1",
    "training.mini_batches=2",
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    "rollout.max_new_tokens=40",
    "checkpoint.every=2",
    "evaluation.every=3",
    "evaluation.problems=8",
)
FIRST_CHECKPOINT_AT = 2
MAY_DIFFER = ("time/", "memory/")


def start(folder: Path, *flags: str, settings: tuple[str, ...] = SETTINGS) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "forkpoint", "train", "--run-dir", str(folder), *flags]
    for setting in settings:
        command += ["--set", setting]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def lines_of(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for(folder: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Until metrics.jsonl has so many lines, or the run is over."""
    deadline = time.monotonic() + 300
    while lines_of(folder) < lines and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def result(folder: Path, step: int = 6) -> dict[str, Any]:
    """What must be the same to the last byte."""
    last = folder / "checkpoints" / f"step_{step:05d}"
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "metrics": [
            {k: v for k, v in line.items() if not k.startswith(MAY_DIFFER)} for line in metrics
        ],
        "weights": (last / "model.safetensors").read_bytes(),
        "optimizer": (last / "optimizer.safetensors").read_bytes(),
        "state": json.loads((last / "state.json").read_text()),
        "rollouts": {
            p.name: p.read_bytes() for p in sorted((folder / "completions/train").iterdir())
        },
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("run") / "uninterrupted"
    finish(start(folder))
    found = result(folder)
    assert [line["step"] for line in found["metrics"]] == [0, 1, 2, 3, 4, 5, 6]
    assert len(found["rollouts"]) == 6
    return found


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["metrics"] == expected["metrics"]
    assert found["state"] == expected["state"]
    assert found["weights"] == expected["weights"]
    assert found["optimizer"] == expected["optimizer"]
    assert found["rollouts"] == expected["rollouts"]


@pytest.mark.parametrize(
    "lines",
    [0, 1, FIRST_CHECKPOINT_AT, 4, 5],
    ids=["before the first line", "before the first step", "in step 2", "in step 4", "in step 5"],
)
def test_kill_9_then_resume(tmp_path: Path, uninterrupted: dict[str, Any], lines: int) -> None:
    folder = tmp_path / "run"
    process = start(folder)
    deadline = time.monotonic() + 120
    while not (folder / "config.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    wait_for(folder, lines, process)
    time.sleep(0.2)  # into the next step
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"
    finish(start(folder, "--resume"))
    assert_same(result(folder), uninterrupted)


def test_many_kills_in_a_row(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    kills = 0
    for lines, delay in [(1, 0.05), (2, 0.3), (3, 0.15), (3, 0.6), (5, 0.1), (6, 0.02)]:
        process = start(folder, *(["--resume"] if kills else []))
        if kills:  # a resumed run first cuts the metrics back: wait for that
            time.sleep(1.0)
        wait_for(folder, lines, process)
        time.sleep(delay)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 4
    finish(start(folder, "--resume"))
    assert_same(result(folder), uninterrupted)


PRUNING = ("checkpoint.every=1", "checkpoint.keep_last=1", "training.steps=12")
KILLS = 12


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("run") / "pruned"
    finish(start(folder, settings=(*SETTINGS, *PRUNING)))
    return result(folder, step=12)


def test_kills_at_random_points_while_checkpoints_are_pruned(
    tmp_path: Path, pruned: dict[str, Any]
) -> None:
    """Every start is killed at a random time after it first saved or deleted something; when the
    run is over it begins anew. All that are resumed to their end are the uninterrupted run."""
    draw, kills, runs = random.Random(0), 0, 0
    folder = tmp_path / "run_0"
    while kills < KILLS:
        again = ["--resume"] if (folder / "config.json").exists() else []
        process = start(folder, *again, settings=(*SETTINGS, *PRUNING))
        wait_for_change(folder / "checkpoints", process)
        time.sleep(draw.uniform(0.0, 0.5))
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            kills += 1
        else:
            assert process.returncode == 0
            whole(folder, pruned)
            runs += 1
            folder = tmp_path / f"run_{runs}"
    finish(start(folder, "--resume", settings=(*SETTINGS, *PRUNING)))
    whole(folder, pruned)


def whole(folder: Path, expected: dict[str, Any]) -> None:
    """The run's bytes, and nothing that a kill left."""
    assert_same(result(folder, step=12), expected)
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step_00012"]
    assert [p.name for p in folder.rglob(".*")] == [".lock"]


def wait_for_change(checkpoints: Path, process: subprocess.Popen[str]) -> None:
    """Until a checkpoint is begun, finished or deleted, or the run is over."""

    def names() -> set[str]:
        return {p.name for p in checkpoints.iterdir()} if checkpoints.exists() else set()

    before, deadline = names(), time.monotonic() + 120
    while names() == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("stop_in", ["a deletion", "a checkpoint being written"])
def test_a_finished_run_finishes_what_a_kill_left(
    tmp_path: Path, uninterrupted: dict[str, Any], stop_in: str
) -> None:
    folder = tmp_path / "run"
    finish(start(folder))
    ending = "removed" if stop_in == "a deletion" else "partial"
    left = folder / "checkpoints" / f".step_00002.{ending}"
    left.mkdir()
    (left / "model.safetensors").touch()
    finish(start(folder, "--resume"))
    assert not left.exists()
    assert_same(result(folder), uninterrupted)


def test_bfloat16_passes_resume_to_the_byte_too(tmp_path: Path) -> None:
    settings = (*SETTINGS, "model.compute_dtype=bfloat16", "optim.lr=1e-6")
    finish(start(tmp_path / "whole", settings=settings))
    folder = tmp_path / "killed"
    process = start(folder, settings=settings)
    wait_for(folder, 4, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finish(start(folder, "--resume", settings=settings))
    assert_same(result(folder), result(tmp_path / "whole"))


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.25], ids=str)
def test_sigterm_saves_and_exits(
    tmp_path: Path, uninterrupted: dict[str, Any], delay: float
) -> None:
    """Wherever in sampling or training the signal arrives."""
    folder = tmp_path / "run"
    process = start(folder)
    wait_for(folder, 4, process)
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "--resume" in output
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    saved = json.loads((newest / "state.json").read_text())["step"]
    assert saved in (3, 4, 5)
    assert lines_of(folder) in (saved, saved + 1)
    finish(start(folder, "--resume"))
    assert_same(result(folder), uninterrupted)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    finish(start(folder))
    finish(start(folder, "--resume"))
    assert_same(result(folder), uninterrupted)


def test_more_steps_equal_a_longer_run(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    """A run of 4 steps extended to 6 trains the same; only its evaluations differ."""
    folder = tmp_path / "run"
    finish(start(folder, settings=(*SETTINGS, "training.steps=4")))
    finish(start(folder, "--resume"))
    found = result(folder)
    assert found["weights"] == uninterrupted["weights"]
    assert found["optimizer"] == uninterrupted["optimizer"]


def test_the_newest_complete_checkpoint_is_used_and_the_broken_one_named(
    tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    folder = tmp_path / "run"
    finish(start(folder, settings=(*SETTINGS, "training.steps=4")))
    with (folder / "checkpoints" / "step_00004" / "model.safetensors").open("r+b") as file:
        file.seek(1000)
        file.write(b"\x00" * 64)
    output = finish(start(folder, "--resume"))
    assert "step_00004 is not used: model.safetensors is not what was written" in output
    assert "resuming after step 2" in output
    assert result(folder)["weights"] == uninterrupted["weights"]
