"""The run's side of tracking: it starts the trackers' processes and waits for none of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from forkpoint.environment import package_version
from forkpoint.errors import ConfigError
from forkpoint.runs import RunDirectory

END_S = 30.0
"""What trackers get, after the run, to deliver what is on its way."""


def refuse_missing(names: Sequence[str]) -> None:
    """Refuse trackers whose packages are not installed.

    Raises:
        ConfigError: naming them, with the line that installs them.
    """
    if missing := [name for name in names if package_version(name) is None]:
        raise ConfigError(
            f"tracking.to names {', '.join(missing)}: pip install {' '.join(missing)} (or "
            "'forkpoint[tracking]' for every tracker)"
        )


class Tracking:
    """An ``Observer`` of ``training.loop``: a process for each tracker, from the first line on.

    A tracker whose process ends before the run does is said once and done without.
    """

    def __init__(
        self, names: Sequence[str], directory: RunDirectory, say: Callable[[str], None]
    ) -> None:
        self._names, self._directory, self._say = names, directory, say
        self._processes: dict[str, subprocess.Popen[bytes]] | None = None

    def note(self, text: str) -> None:
        """Trackers are told of steps alone."""

    def step(self, metrics: dict[str, float]) -> None:
        """A line is in metrics.jsonl, where the trackers find it."""
        if self._processes is None:
            self._processes = {}
            for name in dict.fromkeys(self._names):
                try:
                    self._processes[name] = self._start(name)
                except OSError as error:
                    self._say(f"{name} does not track this run: {error}")
        for name, process in list(self._processes.items()):
            if process.poll() is not None:
                self._drop(name, "stopped")

    def close(self) -> None:
        """Tell the trackers that the run is over, and wait for them a while."""
        processes = self._processes or {}
        for process in processes.values():
            _end_input(process)
        until = time.monotonic() + END_S
        for name, process in list(processes.items()):
            try:
                if process.wait(max(0.0, until - time.monotonic())):
                    self._drop(name, "stopped")
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                self._drop(name, f"was not through {END_S:g} s after the run")

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        log = self._log(name)
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "forkpoint.tracking.follow", name, self._directory.root],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is the run's, which ends trackers itself
            )

    def _drop(self, name: str, how: str) -> None:
        """Say that a tracker has failed, with the last thing it said itself."""
        assert self._processes is not None
        _end_input(self._processes.pop(name))
        log = self._log(name)
        words = log.read_text(encoding="utf-8", errors="replace").strip() if log.exists() else ""
        last = words.splitlines()[-1].strip() if words else "it said nothing"
        self._say(f"{name} {how}: {last} (all of it in {log}); the run goes on without it")

    def _log(self, name: str) -> Path:
        return self._directory.tracking_dir / f"{name}.log"


def _end_input(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()
