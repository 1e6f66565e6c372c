"""Bad input of ``forkpoint analyze``: one clear line with the place, and nothing is lost."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forkpoint.analysis.analyze import AnalysisSettings, analyze
from forkpoint.config import parse_config
from forkpoint.errors import DataError, ForkpointError, ModelError, RunError
from forkpoint.runs import completions as completions_module
from forkpoint.runs.completions import part_files
from forkpoint.runs.results import Pattern, find_result

PROMPT = "n3 n5 n2 goal n16 :"
GOOD = json.dumps({"prompt": PROMPT, "completion": "pick n3 and"}).encode()


def run(root: Path, rollouts: Path, **model: str) -> Pattern:
    config = parse_config({"model": model} if model else {})
    return analyze(config, root, AnalysisSettings(rollouts=rollouts))


def parts(root: Path) -> list[Path]:
    return part_files(root / "completions" / "analysis")


def assert_one_line(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert 0 < len(str(error)) < 400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.jsonl has no rows"),
        (b"\n  \n", "a.jsonl has no rows"),
        (b"[]", "a.jsonl has no rows"),
        (GOOD + b'\n{"prompt": "n3 \xff", "completion": "x"}\n', "a.jsonl, row 2 is not UTF-8"),
        (GOOD + b"\n\n{broken\n", "a.jsonl, row 3 is not JSON"),
        (GOOD + b"\n[1, 2]\n", "a.jsonl, row 2 is not an object with columns but list"),
        (GOOD + b"\n" + GOOD[:-20] + b"\n", "a.jsonl, row 2 is not JSON"),
        (b'{"prompt": "n3 goal", "completion": null}\n', "a.jsonl, row 1: no completion has any"),
        (GOOD.replace(b"pick", b"peck"), "row 1: the tokenizer cannot read the text"),
        (b'{"question": "n3"}', r"row 1: no known kind of rollouts has the columns question"),
        (b"[" * 100_000, "a.jsonl is not JSON"),
    ],
)
def test_a_broken_file_of_lines(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        run(tmp_path / "run", path)
    assert_one_line(caught.value)
    assert path.read_bytes() == content
    assert parts(tmp_path / "run") == []


def test_parquet_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"a.parquet cannot be read as parquet"):
        run(tmp_path / "run", path)
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match=r"a.parquet has no rows"):
        run(tmp_path / "run", path)


def test_parquet_with_broken_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    broken = pa.array([PROMPT.encode(), b"n3 \xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": broken, "completion": ["pick n3", "pick n3"]}), path)
    with pytest.raises(DataError, match=r"a.parquet, row 2 is not UTF-8 text") as caught:
        run(tmp_path / "run", path)
    assert_one_line(caught.value)


@pytest.mark.parametrize("name", ["missing.jsonl", "notes.txt", "empty_folder", "run_without"])
def test_no_rollouts_at_all(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty_folder").mkdir()
    (tmp_path / "run_without").mkdir()
    (tmp_path / "run_without" / "config.json").write_text("{}")
    expected = {
        "missing.jsonl": "there is no such file",
        "notes.txt": r"expected a file that ends in .jsonl",
        "empty_folder": r"empty_folder holds no .* no rollouts to read",
        "run_without": r"run_without/completions/train holds no .* no rollouts to read",
    }
    with pytest.raises(DataError, match=expected[name]) as caught:
        run(tmp_path / "run", tmp_path / name)
    assert_one_line(caught.value)


def test_a_later_bad_row_keeps_the_parts_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkpoint.analysis.analyze.PART_COMPLETIONS", 2)
    path = tmp_path / "a.jsonl"
    path.write_bytes((GOOD + b"\n") * 4 + b'{"prompt": "n3", "completion": "nonsense"}\n')
    with pytest.raises(DataError, match=r"a.jsonl, row 5: the tokenizer cannot read"):
        run(tmp_path / "run", path)
    assert len(parts(tmp_path / "run")) == 2
    assert find_result(tmp_path / "run", Pattern) is None


def test_a_model_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    with pytest.raises(ModelError, match="there is no such folder") as caught:
        run(tmp_path / "run", path, path="./nowhere")
    assert_one_line(caught.value)


def test_a_full_disk_leaves_whole_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkpoint.analysis.analyze.PART_COMPLETIONS", 1)
    path = tmp_path / "a.jsonl"
    path.write_bytes((GOOD + b"\n") * 3)
    make_table = completions_module._table
    written = []

    def full(rows: Any) -> Any:
        written.append(rows)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return make_table(rows)

    monkeypatch.setattr(completions_module, "_table", full)
    with pytest.raises(RunError, match="No space left on device") as caught:
        run(tmp_path / "run", path)
    assert_one_line(caught.value)
    assert len(parts(tmp_path / "run")) == 1
    assert not list(tmp_path.rglob("*.partial"))
    assert run(tmp_path / "run", path).completions == 3


def test_a_broken_part_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    run(tmp_path / "run", path)
    (part,) = parts(tmp_path / "run")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ForkpointError, match=r"cannot read .*part_00000.parquet") as caught:
        run(tmp_path / "run", path)
    assert_one_line(caught.value)


@pytest.mark.slow
def test_ctrl_c_ends_a_real_analysis_between_parts(tmp_path: Path) -> None:
    root = tmp_path / "run"
    command = [sys.executable, "-m", "forkpoint", "analyze", "--run-dir", str(root)]
    command += ["--problems", "24", "--samples", "2", "--set", "rollout.batch_sequences=4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    deadline = time.monotonic() + 240
    while not parts(root) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 130, output
    assert "whole parts are kept" in output
    assert "Traceback" not in output
    kept = {part: part.read_bytes() for part in parts(root)}
    assert 0 < len(kept) < 12
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(parts(root)) == 12
    assert {part: part.read_bytes() for part in kept} == kept
