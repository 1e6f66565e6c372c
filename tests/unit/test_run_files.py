"""metrics.jsonl and rollouts/*.parquet: what is read is what was written, whatever was in it."""

import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkpoint.errors import RunError
from forkpoint.runs import MetricsLog, read_metrics
from forkpoint.runs.rollouts import SCHEMA, RolloutRow, read_rollouts, write_rollouts

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


# ---- rollouts ------------------------------------------------------------------------------------


def row(**settings: Any) -> RolloutRow:
    given: dict[str, Any] = {
        "step": 3,
        "prompt_id": "chain_sum/train/7",
        "prompt": "3 + 4 =",
        "serial": 2**40,
        "sample": 1,
        "completion": "7",
        "reward": 1.0,
        "verdict": 1.0,
        "reward_parts": {"task": 1.0, "overlong": -0.25},
        "error": None,
        "advantage": -0.5,
        "accepted": True,
        "finish_reason": "stop",
        "token_ids": [5, 1],
        "tokens": ["7", "<eos>"],
        "logprobs": [-0.5, 0.0],
        "entropies": [0.75, 0.0],
        "selected": [True, False],
    }
    return RolloutRow(**(given | settings))


def written(path: Path, *rows: RolloutRow) -> list[RolloutRow]:
    write_rollouts(path, rows)
    return read_rollouts(path)


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    rows = [
        row(),
        row(sample=2, reward=None, reward_parts={"task": None}, error="task: timeout after 4 s"),
        row(sample=3, entropies=None, accepted=False, finish_reason="length"),
        row(sample=4, token_ids=[], tokens=[], logprobs=[], entropies=[], selected=[]),
        row(sample=5, reward_parts={}),
    ]
    assert written(tmp_path / "step_00003.parquet", *rows) == rows


def test_numbers_keep_float32(tmp_path: Path) -> None:
    (back,) = written(tmp_path / "a.parquet", row(logprobs=[-0.1, -1e-30], entropies=[0.1, 11.9]))
    assert back.logprobs == pytest.approx([-0.1, -1e-30], rel=2**-24)
    assert back.entropies == pytest.approx([0.1, 11.9], rel=2**-24)


def test_no_rows(tmp_path: Path) -> None:
    assert written(tmp_path / "a.parquet") == []


@settings(max_examples=40, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=20))
def test_any_text_comes_back(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("rollouts") / "a.parquet"
    given = row(prompt=text, completion=text, prompt_id=text, error=text, tokens=[text, text])
    assert written(path, given) == [given]


@settings(max_examples=40, deadline=None)
@given(text=st.text(st.characters(), min_size=1, max_size=8))
def test_halves_of_surrogate_pairs_are_replaced_and_nothing_else_is(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("rollouts") / "a.parquet"
    broken = text + "\ud800"
    given = row(
        prompt_id=broken,
        prompt=broken,
        completion=broken,
        error=broken,
        reward_parts={broken: 1.0},
        tokens=[broken, "fine"],
    )
    clean = "".join("?" if "\ud800" <= c <= "\udfff" else c for c in broken)
    assert written(path, given, row()) == [
        replace(
            given,
            prompt_id=clean,
            prompt=clean,
            completion=clean,
            error=clean,
            reward_parts={clean: 1.0},
            tokens=[clean, "fine"],
        ),
        row(),
    ]


def test_columns_that_a_newer_version_adds_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_rollouts(path, [row()])
    table = pq.read_table(path)
    pq.write_table(table.append_column("ratio", [[1.5]]), path)
    assert read_rollouts(path) == [row()]


def test_folders_that_look_like_partitions_add_nothing(tmp_path: Path) -> None:
    assert written(tmp_path / "step=9" / "lr=2" / "a.parquet", row()) == [row()]


def test_unreadable_rollouts(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(RunError, match=f"cannot read {path}: "):
        read_rollouts(path)
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(RunError, match=f"cannot read {path}: "):
        read_rollouts(path)
    write_rollouts(path, [row()])
    pq.write_table(pq.read_table(path).drop_columns(["entropies", "reward_parts"]), path)
    with pytest.raises(
        RunError, match="has no column reward_parts, entropies: is it a file of rol"
    ):
        read_rollouts(path)


@needs_full_disk
def test_rollouts_on_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_rollouts(path, [row()])
    (tmp_path / ".a.parquet.partial").symlink_to(FULL)
    with pytest.raises(RunError, match=f"cannot write {path}: .*No space left on device"):
        write_rollouts(path, [row(sample=2)])
    assert read_rollouts(path) == [row()]
    assert list(tmp_path.iterdir()) == [path]


def test_schema_names_every_field_in_order() -> None:
    assert SCHEMA.names == list(asdict(row()))
