"""How everything but training goes on where it stopped: a folder of finished pieces.

A measurement is cut into pieces, each a file that is written whole or not at all. Started again,
it makes the pieces that are not there. ``settings.json`` in the folder holds what decides them, so
that pieces made with other settings are never mixed.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from forkpoint.config import RunConfig
from forkpoint.errors import RunError
from forkpoint.runs.atomic import first_fault, read_object, write_json

Piece = TypeVar("Piece")
"""A pydantic model, or a dataclass of plain fields."""

SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True)
class Pieces:
    """The finished pieces of one measurement. Made by ``Pieces.open``.

    A key is a file's name, such as ``pair_00003.json`` or ``completions/part_00000.parquet``.
    """

    folder: Path

    @staticmethod
    def open(folder: Path, settings: Mapping[str, Any]) -> "Pieces":
        """The pieces in ``folder``; a folder without any is given these settings.

        Args:
            settings: everything that decides what is in a piece, as JSON can hold it.

        Raises:
            RunError: there are pieces that were made with other settings.
        """
        pieces = Pieces(folder)
        path = folder / SETTINGS
        if not pieces.any():
            write_json(path, settings)
        elif changed := changed_settings(path, settings):
            raise RunError(
                f"{folder} was started with other settings ({listed(changed)}): give the same "
                f"ones, choose another --run-dir, or delete {folder} to start it anew"
            )
        return pieces

    def any(self) -> bool:
        """Whether a piece was finished."""
        return any(
            path.is_file() and path.name != SETTINGS and not path.name.startswith(".")
            for path in self.folder.rglob("*")
        )

    def settings(self) -> dict[str, Any]:
        """What the pieces were made with; empty if there are none.

        Raises:
            RunError: the file cannot be read.
        """
        return read_object(self.folder / SETTINGS)

    def path(self, key: str) -> Path:
        """The file of a piece, for what writes and reads it by itself."""
        return self.folder / key

    def done(self, key: str) -> bool:
        """Whether the piece is there."""
        return self.path(key).exists()

    def get(self, key: str, kind: type[Piece], make: Callable[[], Piece]) -> Piece:
        """The piece as its file holds it; made and written first if it is not there.

        Raises:
            RunError: the file cannot be read, or the disk is full.
        """
        if not self.done(key):
            write_json(self.path(key), _adapter(kind).dump_python(make(), mode="json"))
        path = self.path(key)
        try:
            return _adapter(kind).validate_python(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:  # ValidationError is a ValueError
            fault = first_fault(error) if isinstance(error, ValidationError) else error
            raise RunError(
                f"{path} cannot be read: {fault}; delete it to measure it again"
            ) from error


@cache
def _adapter(kind: type[Piece]) -> TypeAdapter[Piece]:
    return TypeAdapter(kind)


def changed_settings(path: Path, new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (stored, new) of the settings that differ from those in a file, sorted.

    A setting that did not exist when the file was written had its default.

    Raises:
        RunError: the file cannot be read.
    """
    stored = read_object(path)
    b = dict(leaves(json.loads(json.dumps(new))))  # tuples become lists
    completed = dict(leaves(_with_defaults(stored)))
    a = {k: completed[k] for k in b.keys() & completed.keys()} | dict(leaves(stored))
    return {k: (a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)}


def _with_defaults(stored: Any) -> Any:
    """A stored configuration, or some sections of one, with what it does not name; nothing if it is
    of another kind."""
    try:
        return json.loads(RunConfig.model_validate(stored).model_dump_json())
    except ValidationError:
        return {}


def listed(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """The changes for an error's line: ``model.path: 'lab' -> 'other'``."""
    return ", ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items())


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` as ``("a.b", 1)``; lists are values, an empty mapping has no leaves."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, node
