"""What every analysis leaves in its folder beside its own files."""

from pathlib import Path
from typing import Any

from forkpoint.config import RunConfig
from forkpoint.environment import environment
from forkpoint.runs import RunDirectory
from forkpoint.runs.atomic import write_json, write_text
from forkpoint.runs.directory import check_settings


def write_run_files(directory: RunDirectory, config: RunConfig) -> None:
    """config.json and env.json, for a folder that is no run's already."""
    if not directory.config_json.exists():
        write_text(directory.config_json, config.model_dump_json(indent=2) + "\n")
        write_json(directory.env_json, environment())


def claim_settings(folder: Path, settings: dict[str, Any]) -> None:
    """``check_settings`` on ``folder``/config.json, unless a start that failed left nothing else.

    Raises:
        RunError: the folder holds parquet files made with other settings.
    """
    path = folder / "config.json"
    if not any(folder.rglob("*.parquet")):
        path.unlink(missing_ok=True)
    check_settings(path, settings)
