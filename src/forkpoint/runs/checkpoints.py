"""The checkpoint folders of a run: which they are, whether they are whole, how old ones go.

A checkpoint is a folder ``step_00010``. While it is written it is called ``.step_00010.partial``,
and while it is deleted ``.step_00010.removed``, so that whatever a kill leaves, a folder with a
checkpoint's own name is whole. Folders with any other name are the user's and are never touched.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

from forkpoint.errors import RunError


def checkpoint_path(root: Path, step: int) -> Path:
    """The folder of the checkpoint after ``step`` finished steps."""
    return root / f"step_{step:05d}"


def checkpoint_folders(root: Path) -> dict[int, Path]:
    """Step -> folder of every checkpoint in ``root``, in the order of steps."""
    found = {}
    for path in root.glob("step_*"):
        match = re.fullmatch(r"step_(\d{5,})", path.name)
        if match and path == checkpoint_path(root, int(match[1])) and path.is_dir():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def checkpoint_fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint by the sizes and sums in its manifest.json, or None."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for name, entry in manifest.items():
            path = folder / name
            if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json cannot be read"
    return None


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint, in an order that a kill in between can do no harm to.

    Raises:
        RunError: it cannot be deleted.
    """
    removed = folder.with_name(f".{folder.name}.removed")
    try:
        if removed.exists():  # an earlier deletion was killed
            shutil.rmtree(removed)
        folder.rename(removed)
        shutil.rmtree(removed)
    except OSError as error:
        raise RunError(f"cannot delete the old checkpoint {folder}: {error}") from error


def put_in_place(partial: Path, folder: Path) -> None:
    """Give a whole checkpoint its name, in the place of one that has it already: the old one is
    deleted when the new one stands there. ``finish_removals`` ends it if a kill comes between."""
    removed = folder.with_name(f".{folder.name}.removed")
    if folder.exists():
        shutil.rmtree(removed, ignore_errors=True)
        folder.rename(removed)
    partial.rename(folder)
    shutil.rmtree(removed, ignore_errors=True)


def finish_removals(root: Path) -> None:
    """Delete what a killed process left half written or half deleted; a checkpoint that is whole
    and lacks but its name gets it.

    Raises:
        RunError: it cannot be deleted.
    """
    for path in root.glob(".step_*.removed"):
        partial = path.with_name(f"{path.stem}.partial")
        folder = path.with_name(path.stem.removeprefix("."))
        if partial.exists() and not folder.exists() and checkpoint_fault(partial) is None:
            partial.rename(folder)
    for path in root.glob(".step_*"):
        if re.fullmatch(r"\.step_\d{5,}\.(partial|removed)", path.name):
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise RunError(f"cannot delete {path}: {error}") from error


def sha256(path: Path) -> str:
    """The sum of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
