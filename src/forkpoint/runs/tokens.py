"""The token store: analysis/tokens/part_*.parquet, and analysis/completions/ cut the same way.

A part is some prompts' completions. It is whole or not there, so an analysis that was interrupted
goes on after the last whole part. Rows are ordered by (prompt, sample, position), and a part's
tokens follow each other in the order of its completions.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from forkpoint.errors import RunError
from forkpoint.runs.atomic import write_atomically
from forkpoint.runs.columns import stream_columns

TOKENS = pa.schema(
    [
        ("run", pa.string()),
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("position", pa.int32()),
        ("token_id", pa.int32()),
        ("text", pa.string()),
        ("logprob", pa.float32()),
        ("entropy", pa.float32()),
        ("top_ids", pa.list_(pa.int32())),
        ("top_logprobs", pa.list_(pa.float32())),
        ("reward", pa.float64()),
        ("finish_reason", pa.string()),
    ]
)

COMPLETIONS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("sample", pa.int32()),
        ("completion", pa.string()),
        ("reward", pa.float64()),
        ("finish_reason", pa.string()),
        ("tokens", pa.int32()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
    ]
)

ROW_GROUP_TOKENS = 2**16
"""Tokens held at once while a part is written."""

ROWS = 256
"""Completions held at once while parts are read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRow:
    """A completion that was analysed."""

    prompt_id: str
    prompt: str
    sample: int
    completion: str
    reward: float | None
    """The verifier's verdict, unweighted; null: there is none."""
    finish_reason: str
    """``stop``, ``length``, or ``unknown`` (read from a file that does not say)."""
    tokens: int
    prompt_token_ids: Sequence[int]
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenColumns:
    """What was found out about a completion's T tokens; the arrays are numpy's."""

    texts: Sequence[str]
    """What each token adds to the text: see ``analysis.text``."""
    logprobs_T: Any
    """float32 [T] nats."""
    entropies_T: Any
    """float32 [T] nats."""
    top_ids_TK: Any
    """int32 [T, K]."""
    top_logprobs_TK: Any
    """float32 [T, K] nats."""


@dataclass(frozen=True, slots=True)
class TokenStore:
    """The parts in an ``analysis`` folder."""

    root: Path
    """``D/analysis``."""

    def tokens_path(self, part: int) -> Path:
        return self.root / "tokens" / f"part_{part:05d}.parquet"

    def completions_path(self, part: int) -> Path:
        return self.root / "completions" / f"part_{part:05d}.parquet"

    def has(self, part: int) -> bool:
        """Whether the part is whole: its tokens are written last."""
        return self.tokens_path(part).exists() and self.completions_path(part).exists()

    def parts(self) -> list[int]:
        """The whole parts, ascending."""
        found = [int(p.stem.removeprefix("part_")) for p in (self.root / "tokens").glob("part_*")]
        return sorted(part for part in found if self.has(part))

    def write(
        self,
        part: int,
        run: str,
        completions: Sequence[CompletionRow],
        columns: Iterable[TokenColumns],
    ) -> None:
        """Write a part as its tokens' columns come, one entry per completion, in order.

        Raises:
            RunError: the disk is full.
        """
        table = pa.table(
            {f.name: [getattr(c, f.name) for c in completions] for f in fields(CompletionRow)},
            schema=COMPLETIONS,
        )
        write_atomically(
            self.completions_path(part), lambda p: pq.write_table(table, p, compression="zstd")
        )
        tables = (_token_table(run, *pair) for pair in zip(completions, columns, strict=True))
        write_atomically(self.tokens_path(part), lambda p: _write_grouped(p, tables))

    def completions(self) -> Iterator[CompletionRow]:
        """Every completion of the whole parts, in order, a few at a time in memory.

        Raises:
            RunError: a part cannot be read.
        """
        for part in self.parts():
            path = self.completions_path(part)
            for batch in stream_columns(path, COMPLETIONS.names, rows=ROWS):
                yield from (CompletionRow(**row) for row in batch.to_pylist())

    def columns(self, part: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of a part's tokens, a batch at a time."""
        return stream_columns(self.tokens_path(part), names)

    def completion_columns(self, part: int, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of a part's completions, a batch at a time."""
        return stream_columns(self.completions_path(part), names)


def _token_table(run: str, row: CompletionRow, columns: TokenColumns) -> pa.Table:
    count = len(columns.texts)
    arrays = {
        "run": [run] * count,
        "prompt_id": [row.prompt_id] * count,
        "sample": [row.sample] * count,
        "position": range(count),
        "token_id": row.token_ids,
        "text": columns.texts,
        "logprob": columns.logprobs_T,
        "entropy": columns.entropies_T,
        "top_ids": _lists(columns.top_ids_TK, pa.int32()),
        "top_logprobs": _lists(columns.top_logprobs_TK, pa.float32()),
        "reward": [row.reward] * count,
        "finish_reason": [row.finish_reason] * count,
    }
    return pa.table(arrays, schema=TOKENS)


def _lists(values_TK: Any, kind: pa.DataType) -> pa.Array:
    count, width = values_TK.shape
    offsets = pa.array(range(0, count * width + 1, width) if width else [0] * (count + 1))
    return pa.ListArray.from_arrays(offsets.cast(pa.int32()), pa.array(values_TK.ravel(), kind))


def _write_grouped(path: Path, tables: Iterable[pa.Table]) -> None:
    """Row groups of about ``ROW_GROUP_TOKENS``, so that many short completions compress well."""
    with pq.ParquetWriter(path, TOKENS, compression="zstd") as writer:
        for group in _grouped(iter(tables)):
            writer.write_table(pa.concat_tables(group))


def _grouped(tables: Iterator[pa.Table]) -> Iterator[list[pa.Table]]:
    while first := list(islice(tables, 1)):
        group, count = first, first[0].num_rows
        while count < ROW_GROUP_TOKENS and (more := next(tables, None)) is not None:
            group.append(more)
            count += more.num_rows
        yield group


def check_store(root: Path) -> "TokenStore":
    """The token store of a run directory.

    Raises:
        RunError: there is none, or it is empty.
    """
    store = TokenStore(root / "analysis")
    if not store.parts():
        raise RunError(f"{root} has no analysis/tokens: make them by forkpoint analyze first")
    return store
