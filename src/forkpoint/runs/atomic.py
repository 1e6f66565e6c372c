"""Files that are either whole or not there, and the JSON objects in them."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from forkpoint.errors import RunError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file under another name, then rename it to ``path``.

    Raises:
        RunError: the disk is full or not writable; an earlier ``path`` is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error}") from error
    finally:
        with suppress(OSError):  # there is none when all went well, or when there is no folder
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """``write_atomically`` for a text; what UTF-8 cannot hold is written as JSON escapes it."""

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")

    write_atomically(path, write)


def write_json(path: Path, value: Any) -> None:
    """``write_atomically`` for JSON, indented, without bare NaN."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file.

    Raises:
        RunError: it cannot be read, or is not an object.
    """
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is not a JSON object")
    return value


def first_fault(error: ValidationError) -> str:
    """Which field is wrong, and how."""
    fault = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    return f"{place}: {fault['msg']}" if place else fault["msg"]
