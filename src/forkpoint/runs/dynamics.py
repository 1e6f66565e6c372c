"""analysis/dynamics_tokens.parquet: the same completions, scored by several checkpoints."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from forkpoint.errors import RunError
from forkpoint.runs.atomic import write_atomically

if TYPE_CHECKING:
    import numpy as np

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("checkpoint", pa.int32()),
        ("entropies", pa.list_(pa.float32())),
        ("logprobs", pa.list_(pa.float32())),
    ]
)

ROWS = 256
"""Completions held at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """What one checkpoint says of one completion. The lists are one entry per token."""

    prompt_id: str
    sample: int
    checkpoint: int
    """Index into the checkpoints of analysis/dynamics.json; 0 is the base."""
    entropies: "Sequence[float] | np.ndarray"
    """Nats."""
    logprobs: "Sequence[float] | np.ndarray"
    """Nats, of the completion's tokens."""


def write_scores(path: Path, rows: Iterable[ScoreRow]) -> None:
    """Write rows as they come, ``ROWS`` at a time; the file is whole or not there.

    Raises:
        RunError: the disk is full.
    """
    _write_tables(path, _tables(iter(rows)))


def join_scores(parts: Sequence[Path], path: Path) -> None:
    """Put files of one checkpoint each behind one another.

    Raises:
        RunError: a part cannot be read, or the disk is full.
    """
    _write_tables(path, (table for part in parts for table in _row_groups(part)))


def read_scores(
    path: Path, column: Literal["entropies", "logprobs"], checkpoint: int
) -> "np.ndarray":
    """One checkpoint's values of all completions, end to end: float32 [T].

    Raises:
        RunError: no such file, or not one of scores.
    """
    try:
        table = pq.read_table(path, columns=[column], filters=[("checkpoint", "=", checkpoint)])
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    lists = table[column].combine_chunks()
    return lists.flatten().to_numpy(zero_copy_only=False).copy()  # writable, as torch wants it


def _tables(rows: Iterator[ScoreRow]) -> Iterator[pa.Table]:
    while part := list(islice(rows, ROWS)):
        columns = {f.name: [getattr(row, f.name) for row in part] for f in fields(ScoreRow)}
        yield pa.table(columns, schema=SCHEMA)


def _row_groups(path: Path) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                yield file.read_row_group(number)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"cannot read {path}: {error}; delete it to score it again") from error


def _write_tables(path: Path, tables: Iterable[pa.Table]) -> None:
    def write(partial: Path) -> None:
        with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)

    write_atomically(path, write)
