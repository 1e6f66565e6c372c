"""Some columns of a parquet file, a few thousand rows at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from forkpoint.errors import RunError


def stream_columns(
    path: Path, names: Sequence[str], *, rows: int = 65_536
) -> Iterator[pa.RecordBatch]:
    """The named columns in the order named, in batches of at most ``rows`` rows.

    Memory does not grow with the file. A list column of long lists wants few rows.

    Raises:
        RunError: no such file, not parquet, or a column is missing.
    """
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in names if name not in file.schema_arrow.names]
            if missing:
                raise RunError(f"{path} has no column {', '.join(missing)}")
            for batch in file.iter_batches(rows, columns=list(names)):
                yield batch.select(list(names))
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"cannot read {path}: {error}") from error
