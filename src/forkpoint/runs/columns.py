"""Some columns of a parquet file, a few thousand rows at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from forkpoint.errors import RunError


def stream_columns(
    path: Path, names: Sequence[str], *, optional: Sequence[str] = (), rows: int = 65_536
) -> Iterator[pa.RecordBatch]:
    """The named columns in the order named, in batches of at most ``rows`` rows.

    Memory does not grow with the file. A list column of long lists wants few rows.

    Args:
        optional: further columns, of which those that the file lacks are left out.

    Raises:
        RunError: no such file, not parquet, or a column is missing.
    """
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in names if name not in file.schema_arrow.names]
            if missing:
                raise RunError(f"{path} has no column {', '.join(missing)}")
            found = [*names, *(name for name in optional if name in file.schema_arrow.names)]
            for batch in file.iter_batches(rows, columns=found):
                yield batch.select(found)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"cannot read {path}: {error}") from error
