"""Making the runs of an ablation: each is a process, some side by side; done ones are skipped."""

import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from forkpoint.ablation.recipe import PlannedRun
from forkpoint.errors import Interrupted, RunError
from forkpoint.runs import RunDirectory, read_metrics
from forkpoint.runs.metrics_log import StepEvaluation, evaluations
from forkpoint.runs.resume import changed_settings, listed

LOOK_S = 0.2
"""How often processes are looked after."""


def finished(run: PlannedRun) -> list[StepEvaluation] | None:
    """The evaluations of a run that is through; None of one that is not.

    Raises:
        RunError: the run that is there was made with other settings.
    """
    directory = RunDirectory(run.folder)
    if not (run.folder / "config.json").exists():
        return None
    wanted = json.loads(run.config.model_dump_json())
    changes = changed_settings(run.folder / "config.json", wanted)
    if changed := {k: v for k, v in changes.items() if not k.startswith("tracking.")}:
        raise RunError(
            f"{run.folder} was made with other settings ({listed(changed)}): delete it to make it "
            "anew, or choose another --run-dir"
        )
    if not directory.metrics_jsonl.exists():
        return None
    found = evaluations(read_metrics(directory.metrics_jsonl))
    return found if found and found[-1].step == run.config.training.steps else None


def make_runs(
    runs: Sequence[PlannedRun],
    recipe: str | None,
    *,
    jobs: int,
    note: Callable[[str], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Make those that are not through; a run that fails does not keep the others from theirs.

    Args:
        recipe: what all of them start from.
        jobs: how many at a time.
        note: gets a line about each run that ends.

    Raises:
        RunError: some failed: their logs say why; or another process is making one of them.
        Interrupted: ``should_stop()`` turned true; the runs are saved, and go on when started anew.
    """
    waiting = deque(run for run in runs if finished(run) is None)
    for run in waiting:
        if run.folder.exists():
            with RunDirectory.claim(run.folder):  # is it being made, for one that was killed?
                pass
    total, failed = len(waiting), []
    working: list[tuple[PlannedRun, subprocess.Popen[bytes]]] = []
    try:
        while waiting or working:
            if should_stop():
                raise Interrupted("stopped")
            while waiting and len(working) < jobs:
                run = waiting.popleft()
                working.append((run, _start(run, recipe)))
            for run, process in [(r, p) for r, p in working if p.poll() is not None]:
                working.remove((run, process))
                place = f"{run.variant}, seed {run.seed}"
                if process.returncode or finished(run) is None:
                    failed.append(run)
                    note(f"{place}: failed, see {_log(run)}")
                else:
                    left = len(waiting) + len(working)
                    note(f"{place}: done ({total - left - len(failed)} of {total})")
            time.sleep(LOOK_S)
    finally:
        for _, process in working:
            process.terminate()  # saves what it has
        for _, process in working:
            process.wait()
    if failed:
        raise RunError(
            f"{len(failed)} of {total} runs failed, the first one {failed[0].folder}: see "
            f"{_log(failed[0])}; start the same command again to make what is missing"
        )


def _start(run: PlannedRun, recipe: str | None) -> subprocess.Popen[bytes]:
    """``forkpoint train``, new or from where it stopped."""
    command = [sys.executable, "-m", "forkpoint", "train"]
    if (run.folder / "config.json").exists():
        command.append("--resume")
    else:
        command += [recipe] if recipe else []
        command += [part for setting in (*run.settings, *run.own) for part in ("--set", setting)]
    log = _log(run)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            [*command, "--run-dir", str(run.folder)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C is for us, who pass it on once: a second signal kills
        )


def _log(run: PlannedRun) -> Path:
    return run.folder.with_suffix(".log")
