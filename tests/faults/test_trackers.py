"""Trackers that fail do not stop a run, and are said once."""

import os
import sys
import time
from pathlib import Path

import pytest

from forkpoint.environment import package_version
from forkpoint.runs import MetricsLog, RunDirectory
from forkpoint.tracking import Tracking, observer
from forkpoint.training.loop import train
from tests import tracked

if package_version("wandb") is None:
    pytest.skip("needs the trackers: pip install 'forkpoint[tracking]'", allow_module_level=True)

RAISES_AT_START = """
class Settings(dict): pass
def init(**settings):
    print("\\x1b[31mlogging in")
    raise ConnectionError("no network")
"""
RAISES_LATER = """
class Settings(dict): pass
class init:
    def __init__(self, **settings): pass
    def log(self, *metrics, **step): raise ConnectionError("network is gone")
    def finish(self): pass
"""
HANGS = """
import time
class Settings(dict): pass
class init:
    def __init__(self, **settings): pass
    def log(self, *metrics, **step):
        print("waiting for an answer", flush=True)
        time.sleep(600)
    def finish(self): pass
"""


def be(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``import wandb`` find this code in the processes of trackers."""
    folder.mkdir()
    (folder / "wandb.py").write_text(code)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)


def test_a_run_is_made_without_the_tracker_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(tmp_path / "broken", RAISES_AT_START, monkeypatch)
    root, told = tmp_path / "run", tracked.Told()
    outcome = train(tracked.config(tracking={"to": ["wandb"]}), root, observer=told)
    assert outcome.state.step == 2
    assert told.steps == [1, 2]
    assert [note for note in told.notes if "wandb" in note] == [
        "wandb stopped: ConnectionError: no network (all of it in "
        f"{root / 'tracking' / 'wandb.log'}); the run goes on without it"
    ]
    assert (root / "checkpoints" / "step_00002").is_dir()


def watched(tmp_path: Path) -> tuple[Tracking, list[str], MetricsLog]:
    directory, said = RunDirectory(tmp_path / "run"), []
    directory.root.mkdir()
    directory.config_json.write_text(tracked.config().model_dump_json())
    log = MetricsLog(directory.metrics_jsonl)
    return Tracking(["wandb"], directory, said.append), said, log


def test_one_that_fails_later_is_said_at_the_next_step_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(tmp_path / "broken", RAISES_LATER, monkeypatch)
    tracking, said, log = watched(tmp_path)
    deadline = time.monotonic() + 120
    step = 0
    while not said:
        assert time.monotonic() < deadline
        step += 1
        log.append({"step": step, "a": 1.0})
        tracking.step({"step": step})
        time.sleep(0.05)
    tracking.step({"step": step + 1})
    tracking.close()
    assert len(said) == 1
    assert "wandb stopped: ConnectionError: network is gone" in said[0]


def test_one_that_hangs_is_ended_after_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(tmp_path / "broken", HANGS, monkeypatch)
    monkeypatch.setattr(observer, "END_S", 0.5)
    tracking, said, log = watched(tmp_path)
    log.append({"step": 1, "a": 1.0})
    started = time.monotonic()
    tracking.step({"step": 1})
    tracking.step({"step": 2})
    assert time.monotonic() - started < 10  # starts a process and waits for nothing
    written = tmp_path / "run" / "tracking" / "wandb.log"
    while not written.read_text():
        assert time.monotonic() - started < 120
        time.sleep(0.05)
    started = time.monotonic()
    tracking.close()
    assert time.monotonic() - started < 30
    assert said == [
        "wandb was not through 0.5 s after the run: waiting for an answer (all of it in "
        f"{written}); the run goes on without it"
    ]


def test_one_that_cannot_be_started_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking, said, log = watched(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no_python"))
    log.append({"step": 1, "a": 1.0})
    tracking.step({"step": 1})
    tracking.step({"step": 2})
    tracking.close()
    assert len(said) == 1
    assert said[0].startswith("wandb does not track this run: ")
