"""Stored completions: what is read is what was written, whatever was in it, in constant memory."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkpoint.errors import RunError
from forkpoint.runs import completions as module
from forkpoint.runs.completions import (
    SCHEMA,
    StoredCompletion,
    part_files,
    read_columns,
    read_completions,
    write_completions,
)
from forkpoint.sampling import record
from forkpoint.types import Score, sequence_id
from tests.conftest import make_group
from tests.stored import make_completion, random_completion
from tests.unit.test_run_files import FULL, needs_full_disk

ROW = make_completion(
    2**40,
    1,
    texts=["7", "<eos>"],
    ids=[5, 1],
    logprobs=[-0.5, 0.0],
    entropies=[0.75, 0.0],
    top=[[(5, 0.5), (4, 0.25)], [(1, 1.0), (2, 0.125)]],
    text="7",
    prompt_id="chain_sum/train/7",
    prompt="3 + 4 =",
    step=3,
    advantage=-0.5,
    accepted=True,
    selected=[True, False],
    parts={"task": 1.0, "overlong": -0.25},
)


def written(path: Path, *rows: StoredCompletion) -> list[StoredCompletion]:
    write_completions(path, rows)
    return list(read_completions([path]))


def same(found: StoredCompletion, expected: StoredCompletion) -> bool:
    """Equality, of arrays and lists alike."""
    lists = [
        (None if a is None else list(a)) == (None if b is None else list(b))
        for a, b in (
            (found.pieces, expected.pieces),
            (found.selected, expected.selected),
            (found.prompt_token_ids, expected.prompt_token_ids),
        )
    ]
    plain = dict.fromkeys(("pieces", "selected"), None) | {"prompt_token_ids": ()}
    return all(lists) and replace(found, **plain) == replace(expected, **plain)


def assert_same(found: list[StoredCompletion], *expected: StoredCompletion) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert same(one, other), (one, other)


def test_rows_come_back_as_they_went(tmp_path: Path) -> None:
    failed = Score(reward=None, parts={"task": None}, error="task: timeout after 4 s")
    plain = replace(ROW.completion, entropies=None, top_ids=None, top_logprobs=None)
    rows = [
        ROW,
        replace(ROW, score=failed),
        replace(ROW, completion=plain, accepted=False),
        make_completion(finish_reason="length", reward=None, prompt_token_ids=()),
        make_completion(logprobs=[np.nan, np.nan], finish_reason="unknown"),
        replace(ROW, pieces=None, step=None, advantage=None, accepted=None, selected=None),
    ]
    found = written(tmp_path / "step_00003.parquet", *rows)
    assert_same(found, *rows)
    assert found[0].completion.logprobs.dtype == np.float32


def test_a_completion_without_tokens_comes_back(tmp_path: Path) -> None:
    empty = make_completion(texts=[], top=[])
    (found, other) = written(tmp_path / "a.parquet", empty, ROW)
    assert len(found.completion) == 0
    assert found.pieces == []
    assert_same([other], ROW)
    assert written(tmp_path / "b.parquet") == []


def test_what_is_not_known_is_null(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    bare = replace(ROW.completion, entropies=None, top_ids=None, top_logprobs=None)
    unknown = replace(bare, logprobs=[np.nan, np.nan])
    write_completions(
        path, [StoredCompletion(completion=unknown, prompt_id="p", prompt="", serial=0, sample=0)]
    )
    (row,) = pq.read_table(path).to_pylist()
    known = {"prompt_id", "prompt", "serial", "sample", "text", "finish_reason", "token_ids"}
    assert {name for name, value in row.items() if value is not None} == known | {"reward_parts"}


@settings(max_examples=40, deadline=None)
@given(text=st.text(st.characters(), max_size=20))
def test_any_text_comes_back_and_halves_of_surrogate_pairs_are_replaced(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("completions") / "a.parquet"

    def row(text: str) -> StoredCompletion:
        score = Score(reward=1.0, parts={text: 1.0}, error=text)
        return replace(
            ROW,
            completion=replace(ROW.completion, text=text),
            score=score,
            prompt=text,
            prompt_id=text,
            pieces=[text, "fine"],
        )

    clean = "".join("?" if "\ud800" <= c <= "\udfff" else c for c in text)
    assert_same(written(path, row(text), ROW), row(clean), ROW)


def test_columns_that_a_newer_version_adds_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "step=9" / "lr=2" / "a.parquet"  # folders that look like partitions
    write_completions(path, [ROW])
    pq.write_table(pq.ParquetFile(path).read().append_column("ratio", [[1.5]]), path)
    assert_same(list(read_completions([path])), ROW)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(RunError, match=f"cannot read {path}: "):
        list(read_completions([path]))
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(RunError, match=f"cannot read {path}: "):
        list(read_completions([path]))
    write_completions(path, [ROW])
    pq.write_table(pq.read_table(path).drop_columns(["entropies", "reward_parts"]), path)
    with pytest.raises(RunError, match="no column reward_parts, entropies: is it a file of compl"):
        list(read_columns([path], ["text"]))


@needs_full_disk
def test_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_completions(path, [ROW])
    (tmp_path / ".a.parquet.partial").symlink_to(FULL)
    with pytest.raises(RunError, match=f"cannot write {path}: .*No space left on device"):
        write_completions(path, [replace(ROW, sample=2)])
    assert_same(list(read_completions([path])), ROW)
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_while_a_part_is_written_leaves_none(tmp_path: Path) -> None:
    def stops() -> Iterator[StoredCompletion]:
        yield ROW
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_completions(tmp_path / "part_00000.parquet", stops())
    assert list(tmp_path.iterdir()) == []


# ---- columns and row groups ---------------------------------------------------------------------


def test_columns_are_the_rows_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    bare = replace(
        ROW, completion=replace(ROW.completion, entropies=None), score=Score(reward=None)
    )
    write_completions(path, [bare, ROW, make_completion(texts=[], top=[]), ROW])
    (columns,) = read_columns([path], ["entropies", "pieces", "reward", "sample"])
    assert columns.lengths("entropies").tolist() == [0, 2, 0, 2]
    assert columns.flat("entropies").tolist() == [0.75, 0.0, 0.75, 0.0]
    assert [None if a is None else a.tolist() for a in columns.arrays("entropies")] == [
        None,
        [0.75, 0.0],
        [],
        [0.75, 0.0],
    ]
    codes, texts = columns.texts()
    assert [texts[code] for code in codes] == ["7", "<eos>"] * 3
    np.testing.assert_array_equal(columns.numbers("reward"), [np.nan, 1.0, 1.0, 1.0])
    assert columns.values("sample") == [1, 1, 0, 1]


def test_row_groups_are_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROW_GROUP_TOKENS", 5)
    path = tmp_path / "part_00000.parquet"
    rows = [replace(ROW, sample=s) for s in range(7)]
    write_completions(path, iter(rows))
    # a group closes at 5 tokens or more: 3 completions of 2
    assert [len(columns) for columns in read_columns([path], ["sample"])] == [3, 3, 1]
    wanted = np.array([s in (1, 2, 6) for s in range(7)] * 2)
    found = read_completions([path, path], wanted)
    assert [row.sample for row in found] == [1, 2, 6] * 2
    assert part_files(tmp_path) == [path]


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROW_GROUP_TOKENS", 2**10)
    random = np.random.default_rng(0)

    def peak(count: int) -> int:
        path = tmp_path / f"{count}.parquet"
        tracemalloc.start()
        write_completions(path, (random_completion(random, i, 0, 128) for i in range(count)))
        assert sum(len(row.completion) for row in read_completions([path])) == 128 * count
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    pa.set_memory_pool(pa.system_memory_pool())
    peak(8)
    assert peak(320) < 1.3 * peak(32)


def test_the_schema_is_the_one_that_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "run-directory.md").read_text()
    section = text[text.index("## Completions") :]
    documented = [line.split("`")[1::2] for line in section.splitlines() if line.startswith("| `")]
    assert [name for names in documented for name in names if name in SCHEMA.names] == SCHEMA.names


# ---- a training step's --------------------------------------------------------------------------


def test_sequences_are_numbered_by_prompt_then_sample() -> None:
    numbers = [sequence_id(serial, sample, 3) for serial in range(4) for sample in range(3)]
    assert numbers == list(range(12))


@pytest.mark.parametrize(
    ("keep", "count"), [("all", 40), ("none", 0), (8, 8), (100, 40), (0.25, 10), (1.0, 40)]
)
def test_how_many_groups_are_kept(keep: str | float, count: int) -> None:
    groups = [make_group(serial, [0.0, 1.0], [2, 3]) for serial in range(40)]
    kept = [group.serial for group in record.kept_groups(groups, keep)]
    assert len(kept) == count
    assert kept == sorted(kept)
    # which ones depends on the serials alone
    assert [g.serial for g in record.kept_groups(groups[::-1], keep)] == kept[::-1]


def test_large_steps_are_thinned_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [make_group(serial, [0.0, 1.0], [2, 3]) for serial in range(40)]
    assert record.kept_groups(groups, "auto") == groups
    monkeypatch.setattr(record, "AUTO_TOKENS", 23)  # 4 groups of 5 tokens
    assert record.kept_groups(groups, "auto") == record.kept_groups(groups, 4)
    monkeypatch.setattr(record, "AUTO_TOKENS", 1)
    assert len(record.kept_groups(groups, "auto")) == 1
