"""metrics.jsonl: what is read is what was written, whatever was in it."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from forkpoint.errors import RunError
from forkpoint.runs import MetricsLog, read_metrics

FULL = Path("/dev/full")
"""Linux' disk that is always full: every write to it fails with ENOSPC."""
needs_full_disk = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")

# ---- metrics.jsonl -------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append({"step": 1, "loss/policy": math.nan, "grad/norm": math.inf})
    log.append({"step": 2, "loss/policy": 0.1})
    assert path.read_text().splitlines() == [
        '{"step": 1, "loss/policy": null, "grad/norm": null}',
        '{"step": 2, "loss/policy": 0.1}',
    ]
    assert read_metrics(path) == [
        {"step": 1, "loss/policy": None, "grad/norm": None},
        {"step": 2, "loss/policy": 0.1},
    ]


def test_line_is_there_before_the_process_ends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom forkpoint.runs import MetricsLog\n"
        "MetricsLog(Path(sys.argv[1])).append({'step': 1})\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    assert read_metrics(path) == [{"step": 1}]


@pytest.mark.parametrize("step", [0, 1, 2, 3, 9])
def test_truncate_after(step: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for i in range(4):
        log.append({"step": i})
    with path.open("a") as file:
        file.write('{"step": 0, "loss')  # killed in the middle of a line, of whatever step
    log.truncate_after(step)
    assert [line["step"] for line in read_metrics(path)] == list(range(min(step, 3) + 1))
    log.append({"step": step + 1})
    assert read_metrics(path)[-1] == {"step": step + 1}


def test_truncate_drops_what_is_no_line_of_a_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n[1]\n{"loss": 2}\n{"step": null}\n{"step": 2}\n')
    MetricsLog(path).truncate_after(2)
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_truncating_nothing_makes_nothing(tmp_path: Path) -> None:
    MetricsLog(tmp_path / "metrics.jsonl").truncate_after(3)
    assert list(tmp_path.iterdir()) == []


def test_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = '{"step": 2, "loss/policy": 0.25}'
    for end in range(len(line)):
        path.write_text('{"step": 1}\n' + line[:end])
        assert read_metrics(path) == [{"step": 1}]


def test_unreadable_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(RunError, match=f"cannot read {path}: .*No such file"):
        read_metrics(path)
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError, match=f"{path}, line 2 is not JSON: "):
        read_metrics(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match=f"cannot read {path}: "):
        read_metrics(path)


@needs_full_disk
def test_metrics_on_a_full_disk() -> None:
    with pytest.raises(RunError, match=r"cannot write /dev/full: .*No space left on device"):
        MetricsLog(FULL).append({"step": 1})
