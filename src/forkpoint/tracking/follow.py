"""The process of one tracker: ``python -m forkpoint.tracking.follow NAME RUN_DIRECTORY``.

It follows metrics.jsonl, and ends when its standard input does: that is the run's end, however the
run ends. Its output is the tracker's log.
"""

import fcntl
import json
import secrets
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from forkpoint.config import RunConfig, load_config
from forkpoint.runs import RunDirectory
from forkpoint.runs.atomic import read_object, write_json
from forkpoint.tracking.trackers import TRACKERS, Tracker

LOOK_S = 0.5
"""How often metrics.jsonl is looked at."""


def follow(name: str, tracker: Tracker, root: Path, run_ended: Callable[[], bool]) -> None:
    """Give a tracker every line of metrics.jsonl that it has not been given, until the run ends.

    What it was given is in ``tracking/NAME.json``, so that steps which a resumed run makes again
    are not logged again, and steps from before it was named are logged at its start.

    Args:
        run_ended: waits a little, and says whether the run has ended.
    """
    directory = RunDirectory(root)
    folder, config = directory.tracking_dir, load_config(directory.config_json)
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the process that a killed run left ends first
        path = folder / f"{name}.json"
        state = _state(path, config)
        tracker.start(config, folder, state["run"])
        with directory.metrics_jsonl.open("rb") as file:
            ended = False
            while not ended:
                ended = run_ended()  # asked first: what the run wrote before its end is read below
                try:
                    for line in _whole_lines(file):
                        step = int(line.pop("step"))
                        if step > state["logged"]:
                            known = {key: value for key, value in line.items() if value is not None}
                            tracker.log(step, known)
                            state["logged"] = step
                finally:
                    write_json(path, state)
        tracker.close()


def _state(path: Path, config: RunConfig) -> dict[str, Any]:
    """The run's name at the tracker and the last step that it was given; another project gets a run
    of its own, from the first step on."""
    found, project = read_object(path), config.tracking.project
    if found.get("project") == project:
        return found
    run = f"{config.name}-{secrets.token_hex(4)}"
    return {"project": project, "run": run, "logged": -1}


def _whole_lines(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """The lines from here to the end, without one that is being written."""
    while (line := file.readline()).endswith(b"\n"):
        yield json.loads(line)
    file.seek(-len(line), 1)


def _run_ended() -> bool:
    return bool(select.select([sys.stdin], [], [], LOOK_S)[0])


def main() -> None:
    """Follow the run that the command line names."""
    name, root = sys.argv[1:]
    follow(name, TRACKERS[name](), Path(root), _run_ended)


if __name__ == "__main__":
    main()
