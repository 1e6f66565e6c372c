"""The rows of JSONL and parquet files, one at a time, each with the place it came from."""

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from forkpoint.errors import DataError
from forkpoint.runs.directory import check_schema
from forkpoint.runs.resume import SETTINGS

SUFFIXES = (".jsonl", ".json", ".parquet")

BOM = b"\xef\xbb\xbf"
"""With which some editors begin a file of UTF-8 text."""

BATCH_ROWS = 64
"""Rows of a parquet file held at once."""


class Row(NamedTuple):
    """A row and how to name it in a message."""

    place: str
    """``rollouts.jsonl, row 12``, counted from 1."""
    values: dict[str, Any]


def find_files(path: Path) -> list[Path]:
    """The files to read: ``path`` itself, or those in a folder by name (in completions/train of a
    run's).

    Raises:
        DataError: there is nothing to read.
        RunError: a run directory of another version.
    """
    if path.is_dir():
        check_schema(path)
        folder = path / "completions/train" if (path / "config.json").exists() else path
        found = folder.glob("*")
        files = sorted(p for p in found if p.suffix in SUFFIXES and p.name != SETTINGS)
        if not files:
            raise DataError(f"{folder} holds no {', '.join(SUFFIXES)} file: no rollouts to read")
        return sorted(files, key=_natural)
    _check_exists(path)
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")
    return [path]


def bytes_of(path: Path | None) -> int | None:
    """Of all files that ``find_files`` finds, together; None of none. Raises as it does."""
    return None if path is None else sum(one.stat().st_size for one in find_files(path))


def read_rows(path: Path) -> Iterator[Row]:
    """Rows in order, in memory constant in their number.

    Raises:
        DataError: the file or one of its rows cannot be read, or it is empty.
    """
    _check_exists(path)
    rows = _parquet(path) if path.suffix == ".parquet" else _json(path)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path} has no rows")
    yield first
    yield from rows


def _check_exists(path: Path) -> None:
    if path.exists():
        return
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else ""
    raise DataError(f"cannot read {path}: there is no such file{hint}")


def _natural(path: Path) -> tuple[Any, ...]:
    """2.jsonl before 10.jsonl."""
    return (len(path.stem), path.stem) if path.stem.isdigit() else (0, path.stem)


def _json(path: Path) -> Iterator[Row]:
    """JSON objects, a line each; or one list of them."""
    try:
        with path.open("rb") as file:
            first = True
            for number, line in enumerate(file, start=1):
                text = line.removeprefix(BOM) if number == 1 else line
                if first and text.lstrip().startswith(b"["):
                    yield from _json_list(path, text + file.read())
                    return
                if text.strip():
                    first = False
                    yield _row(f"{path}, row {number}", text)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _json_list(path: Path, text: bytes) -> Iterator[Row]:
    values = _parse(str(path), text)
    for number, value in enumerate(values, start=1):
        yield _checked(f"{path}, row {number}", value)


def _row(place: str, line: bytes) -> Row:
    return _checked(place, _parse(place, line))


def _parse(place: str, text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON: {error}") from error


def _checked(place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{place} is not an object with columns but {type(value).__name__}")
    return Row(place, value)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                for index in range(batch.num_rows):
                    number += 1
                    yield Row(f"{path}, row {number}", _values(path, number, batch, index))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error


def _values(path: Path, number: int, batch: Any, index: int) -> dict[str, Any]:
    try:
        return {
            name: column[index].as_py()
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, row {number} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error


def short(value: Any, length: int = 60) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}.."


def column_names(values: dict[str, Any] | Sequence[str]) -> str:
    """The columns found, for a message."""
    return ", ".join(sorted(values)) or "none"
