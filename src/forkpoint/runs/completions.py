"""Completions without their tokens' columns: the rows of ``tokens.COMPLETIONS`` in files of their
own, for what samples or re-scores completions apart from the token store."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from forkpoint.runs.atomic import write_atomically
from forkpoint.runs.columns import stream_columns
from forkpoint.runs.tokens import COMPLETIONS, ROWS, CompletionRow


def write_completions(path: Path, rows: Sequence[CompletionRow]) -> None:
    """Write rows; the file is whole or not there.

    Raises:
        RunError: the disk is full.
    """
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields(CompletionRow)}
    table = pa.table(columns, schema=COMPLETIONS)
    write_atomically(path, lambda partial: pq.write_table(table, partial, compression="zstd"))


def stream_completions(paths: Sequence[Path]) -> Iterator[CompletionRow]:
    """The rows of several files, one behind the other, a few at a time in memory.

    Raises:
        RunError: a file cannot be read, or a column is missing.
    """
    for path in paths:
        for batch in stream_columns(path, COMPLETIONS.names, rows=ROWS):
            yield from (CompletionRow(**row) for row in batch.to_pylist())
