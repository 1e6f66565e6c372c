"""``forkpoint report --watch``: the page is built anew as its runs go on."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from forkpoint.config import load_config
from forkpoint.errors import RunError
from forkpoint.report.build import build_report
from forkpoint.runs import RunDirectory, read_metrics

NOT_SHOWN = ("checkpoints", "tracking")
"""Folders of a run that the page does not read."""
LOOK_S = 0.1
"""How soon a wish to stop is noticed."""


def watch(
    runs: Sequence[Path],
    out: Path,
    *,
    every: float,
    note: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> None:
    """Build the page whenever files of its runs have changed, until all runs are over.

    Meanwhile the page reloads itself in the browser; the one that is left at the end does not.

    Args:
        every: seconds between two looks at the files.
        note: is told why a page could not be built; the next change is waited for then.

    Raises:
        RunError: as ``build_report``, of what is no run that has begun, or at the end.
    """
    seen = None
    while True:
        last = should_stop() or all(is_over(run) for run in runs)
        files = _files(runs, out)
        if last or files != seen:
            seen = files
            try:
                build_report(runs, out, reload_s=None if last else every)
            except RunError as error:  # nothing to show yet, or a file that went away meanwhile
                if last or not all(RunDirectory(run).config_json.exists() for run in runs):
                    raise
                note(f"waiting: {error}")
        if last:
            return
        until = time.monotonic() + every
        while time.monotonic() < until and not should_stop():
            time.sleep(min(LOOK_S, every))


def is_over(run: Path) -> bool:
    """Whether a run has logged its last step; one that was stopped before may yet go on."""
    directory = RunDirectory(run)
    if not directory.config_json.exists() or not directory.metrics_jsonl.exists():
        return False
    steps = load_config(directory.config_json).training.steps
    return any(line.get("step") == steps for line in read_metrics(directory.metrics_jsonl))


def _files(runs: Sequence[Path], out: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of change of all that the page may be made from."""
    found = {}
    for run in runs:
        for folder, folders, names in os.walk(run):
            folders[:] = [name for name in folders if name not in NOT_SHOWN]
            for path in (Path(folder, name) for name in names if not name.startswith(".")):
                with suppress(OSError):  # it went away
                    if path.resolve() != out.resolve():
                        found[path] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found
