"""What ``forkpoint analyze`` was started with; ``runs.resume`` is what takes its place."""

from pathlib import Path
from typing import Any

from forkpoint.errors import RunError
from forkpoint.runs.atomic import write_json
from forkpoint.runs.resume import changed_settings, listed


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Store what a command was started with, or refuse to go on with other settings.

    Raises:
        RunError: ``path`` holds other settings, naming each that differs, or cannot be read.
    """
    if not path.exists():
        write_json(path, settings)
    elif changed := changed_settings(path, settings):
        raise RunError(
            f"{path.parent} was started with other settings ({listed(changed)}); choose another "
            f"--run-dir, or delete {path.parent} to start it anew"
        )
