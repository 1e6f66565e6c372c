"""analysis/vocabulary.parquet: the text of every token id, for ids that no completion holds."""

from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from forkpoint.runs.atomic import write_atomically
from forkpoint.runs.columns import stream_columns

SCHEMA = pa.schema([("token_id", pa.int32()), ("text", pa.string())])


def write_vocabulary(path: Path, texts: Sequence[str]) -> None:
    """Write the texts of the ids 0, 1, 2, ...

    Raises:
        RunError: the disk is full.
    """
    table = pa.table({"token_id": range(len(texts)), "text": list(texts)}, schema=SCHEMA)
    write_atomically(path, lambda partial: pq.write_table(table, partial, compression="zstd"))


def read_texts(path: Path, token_ids: Collection[int]) -> dict[int, str]:
    """The texts of some ids; empty if there is no such file, without the ids that it lacks.

    Raises:
        RunError: it cannot be read.
    """
    if not path.exists() or not token_ids:
        return {}
    found = {}
    for batch in stream_columns(path, SCHEMA.names):
        pairs = zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
        found |= {token: text for token, text in pairs if token in token_ids}
    return found
