"""The first command of the README, as a newcomer runs it, and the finding it must show."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forkpoint.runs import read_metrics
from forkpoint.runs.completions import read_completions

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
def summary(demo: Path) -> dict[str, dict[str, Any]]:
    return json.loads((demo / "summary.json").read_text())


def test_forks_at_least_double_the_accuracy(summary: dict[str, dict[str, Any]]) -> None:
    before, after = summary["accuracy_before"], summary["accuracy_after"]
    assert before["n"] == after["n"] >= 500
    assert after["value"] >= 2 * before["value"]
    assert after["low"] > before["high"]


def test_forks_end_clearly_above_the_control(summary: dict[str, dict[str, Any]]) -> None:
    after, control = summary["accuracy_after"], summary["accuracy_control"]
    assert control["n"] == after["n"]
    assert after["low"] > control["high"]


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
