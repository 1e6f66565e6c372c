"""The first command of the README, as a newcomer runs it, and the finding it must show."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from forkpoint.runs import read_metrics
from forkpoint.runs.completions import read_completions
from forkpoint.runs.results import Demo, read_result, result_path

pytestmark = pytest.mark.slow

SET_BY_TESTS = {"OMP_NUM_THREADS", "HF_HUB_DISABLE_PROGRESS_BARS"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "forkpoint", "demo", "--run-dir", str(root)],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k not in SET_BY_TESTS},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accuracy on held-out problems, 95 % interval" in done.stdout
    assert done.stderr == ""
    return root


@pytest.fixture(scope="module")
def found(demo: Path) -> Demo:
    return read_result(result_path(demo, Demo), Demo)


def test_forks_at_least_double_the_accuracy(found: Demo) -> None:
    before, after = found.accuracy_before, found.accuracy_after
    assert before.n == after.n >= 500
    assert before.interval is not None
    assert after.interval is not None
    assert after.value >= 2 * before.value
    assert after.interval[0] > before.interval[1]


def test_forks_end_clearly_above_the_control(found: Demo) -> None:
    after, control = found.accuracy_after, found.accuracy_control
    assert control.n == after.n
    assert after.interval is not None
    assert control.interval is not None
    assert after.interval[0] > control.interval[1]


def test_the_run_directory_says_what_was_trained(demo: Path) -> None:
    for root, kept, rule in ((demo, 0.2, "top"), (demo / "control", 0.8, "bottom")):
        config = json.loads((root / "config.json").read_text())
        assert (config["selection"]["rule"], config["training"]["steps"]) == (rule, 16)
        lines = [m for m in read_metrics(root / "metrics.jsonl") if m["step"] > 0]
        assert len(lines) == 16
        assert all(abs(m["selection/kept_fraction"] - kept) < 1e-3 for m in lines)
        assert all(m["mismatch/kl"] < 1e-6 for m in lines)
        stored = read_completions([root / "completions/train/step_00016.parquet"])
        rows = [row for row in stored if row.accepted]
        tokens = sum(len(row.completion) for row in rows)
        assert lines[-1]["selection/pool_tokens"] == tokens
        forks = -(-tokens // 5)  # a fifth, rounded up
        selected = sum(int(np.sum(row.selected)) for row in rows)
        assert selected == (forks if rule == "top" else tokens - forks)
    assert (demo / "report.html").stat().st_size > 50_000
    assert (demo / "env.json").exists()
    assert (demo / "checkpoints" / "step_00016" / "manifest.json").exists()
