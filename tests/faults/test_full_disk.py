"""A disk that is full: the run stops with one line and the previous checkpoint is kept."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SETTINGS = ("training.threads=1", "rollout.prompts_per_step=3", "rollout.max_new_tokens=40")
LIMIT = 3_000_000
"""Bytes: more than the weights (2.4 MB) and less than the optimizer's state (4.8 MB)."""


def _files_may_not_grow() -> None:
    """Writing past the limit fails, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


def run(folder: Path, steps: int, *flags: str, full: bool = False) -> tuple[int, str]:
    command = [sys.executable, "-m", "forkpoint", "train", "--run-dir", str(folder), *flags]
    for setting in (*SETTINGS, f"training.steps={steps}"):
        command += ["--set", setting]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=_files_may_not_grow if full else None,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_previous_checkpoint_survives(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(folder, 1)[0] == 0
    first = folder / "checkpoints" / "step_00001"
    before = {p.name: p.read_bytes() for p in first.iterdir()}
    code, output = run(folder, 2, "--resume", full=True)
    assert code == 2
    assert "error: cannot write checkpoint" in output
    assert "Earlier checkpoints are untouched" in output
    assert "Traceback" not in output
    assert {p.name: p.read_bytes() for p in first.iterdir()} == before
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step_00001"]
    code, output = run(folder, 2, "--resume")
    assert code == 0, output
    assert (folder / "checkpoints" / "step_00002" / "manifest.json").exists()
