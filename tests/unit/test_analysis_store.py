"""The token store: what is written is read back, whole parts only, by one process at a time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from forkpoint.errors import RunError
from forkpoint.runs import RunDirectory
from forkpoint.runs import tokens as tokens_module
from forkpoint.runs.tokens import TOKENS, CompletionRow, TokenColumns, TokenStore, check_store

ROW = CompletionRow(
    prompt_id="p0",
    prompt="1 + 1 =",
    sample=0,
    completion="2 €",
    reward=1.0,
    finish_reason="stop",
    tokens=3,
    prompt_token_ids=(5, 6),
    token_ids=(7, 8, 9),
)


def columns(*texts: str, top: int = 2) -> TokenColumns:
    count = len(texts)
    return TokenColumns(
        texts=texts,
        logprobs_T=-np.arange(count, dtype=np.float32),
        entropies_T=np.arange(count, dtype=np.float32) / 4,
        top_ids_TK=np.arange(count * top, dtype=np.int32).reshape(count, top),
        top_logprobs_TK=-np.arange(count * top, dtype=np.float32).reshape(count, top) / 8,
    )


def test_tokens_are_read_back_beside_their_completion(tmp_path: Path) -> None:
    store = TokenStore(tmp_path)
    second = replace(ROW, sample=1, reward=None, tokens=1, token_ids=(4,), finish_reason="length")
    store.write(0, "run", [ROW, second], [columns("2", "", " €"), columns("x")])
    table = pq.read_table(store.tokens_path(0))
    assert table.schema.remove_metadata() == TOKENS
    assert table.to_pylist()[2] == {
        "run": "run",
        "prompt_id": "p0",
        "sample": 0,
        "position": 2,
        "token_id": 9,
        "text": " €",
        "logprob": -2.0,
        "entropy": 0.5,
        "top_ids": [4, 5],
        "top_logprobs": [-0.5, -0.625],
        "reward": 1.0,
        "finish_reason": "stop",
    }
    last = table.to_pylist()[3]
    assert (last["sample"], last["position"], last["reward"]) == (1, 0, None)
    assert [replace(r, prompt_token_ids=(5, 6), token_ids=()) for r in store.completions()] == [
        replace(ROW, token_ids=()),
        replace(second, token_ids=()),
    ]
    assert [list(r.token_ids) for r in store.completions()] == [[7, 8, 9], [4]]


def test_parts_follow_each_other_and_half_a_part_is_none(tmp_path: Path) -> None:
    store = TokenStore(tmp_path)
    for part in (1, 0):
        store.write(part, "run", [replace(ROW, prompt_id=f"p{part}")], [columns("a", "b", "c")])
    assert store.parts() == [0, 1]
    assert [row.prompt_id for row in store.completions()] == ["p0", "p1"]
    store.tokens_path(0).unlink()
    assert not store.has(0)
    assert store.parts() == [1]


def test_a_completion_without_tokens_has_no_row(tmp_path: Path) -> None:
    store = TokenStore(tmp_path)
    empty = replace(ROW, tokens=0, token_ids=())
    store.write(0, "run", [empty, ROW], [columns(), columns("a", "b", "c", top=0)])
    assert pq.read_table(store.tokens_path(0))["position"].to_pylist() == [0, 1, 2]
    assert pq.read_table(store.tokens_path(0))["top_ids"].to_pylist() == [[], [], []]


def test_row_groups_are_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "ROW_GROUP_TOKENS", 5)
    rows = [replace(ROW, sample=s) for s in range(10)]
    store = TokenStore(tmp_path)
    store.write(0, "run", rows, (columns("a", "b", "c") for _ in rows))
    with pq.ParquetFile(store.tokens_path(0)) as file:
        # groups close at 5 tokens or more: 2 completions of 3
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [6] * 5


def test_what_fails_while_a_part_is_written_leaves_none(tmp_path: Path) -> None:
    store = TokenStore(tmp_path)

    def stops() -> Iterator[TokenColumns]:
        yield columns("a", "b", "c")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(0, "run", [ROW, replace(ROW, sample=1)], stops())
    assert store.parts() == []
    assert [p.name for p in (tmp_path / "tokens").iterdir()] == []


def test_a_directory_without_tokens_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no analysis/tokens: make them by forkpoint analyze"):
        check_store(tmp_path)
    TokenStore(tmp_path / "analysis").write(0, "run", [ROW], [columns("a", "b", "c")])
    assert check_store(tmp_path).parts() == [0]


# ---- claiming a directory, remembering settings --------------------------------------------------


def test_claim_makes_the_folder_and_leaves_its_configuration_alone(tmp_path: Path) -> None:
    root = tmp_path / "new" / "run"
    with RunDirectory.claim(root) as directory:
        assert directory.root == root
        assert not directory.config_json.exists()
    directory.config_json.write_text('{"a": 1}')
    with RunDirectory.claim(root):
        pass
    assert directory.config_json.read_text() == '{"a": 1}'


def test_a_directory_is_claimed_once(tmp_path: Path) -> None:
    with (
        RunDirectory.claim(tmp_path),
        pytest.raises(RunError, match="is being written by process"),
        RunDirectory.claim(tmp_path),
    ):
        pass
    with RunDirectory.claim(tmp_path):  # free again
        pass


def test_claim_and_training_exclude_each_other(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with (
        RunDirectory.open(root, "{}", resume=False),
        pytest.raises(RunError, match="is being written by process"),
        RunDirectory.claim(root),
    ):
        pass
