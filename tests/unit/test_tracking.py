"""Trackers, each offline, have what metrics.jsonl has, of real runs of the laboratory's model."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forkpoint.environment import package_version
from forkpoint.errors import ConfigError
from forkpoint.runs import MetricsLog, RunDirectory
from forkpoint.runs.directory import MAY_CHANGE
from forkpoint.tracking import follow, observer
from forkpoint.training.loop import train
from tests import tracked

NAMES = ("trackio", "wandb", "tensorboard")
if None in map(package_version, NAMES):
    pytest.skip("needs the trackers: pip install 'forkpoint[tracking]'", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of their packages


def settled(steps: tracked.Steps) -> tracked.Steps:
    """Without what is another number each time a step is made."""
    return [
        (step, {k: v for k, v in values.items() if not k.startswith(("time/", "memory/"))})
        for step, values in steps
    ]


def as_float32(steps: tracked.Steps) -> tracked.Steps:
    return [(step, {k: float(np.float32(v)) for k, v in values.items()}) for step, values in steps]


def test_each_tracker_has_the_lines_of_a_run_and_of_its_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr(observer, "END_S", 120.0)  # of a busy machine
    root, told = tmp_path / "run", tracked.Told()
    folder = RunDirectory(root).tracking_dir

    def held() -> dict[str, tracked.Steps]:
        run = json.loads((folder / "trackio.json").read_text())["run"]
        return {
            "trackio": tracked.in_trackio("ours", run),
            "wandb": tracked.in_wandb(folder / "wandb"),
            "tensorboard": tracked.in_tensorboard(folder / "tensorboard"),
        }

    tracking = {"to": NAMES, "project": "ours"}
    train(tracked.config(tracking=tracking), root, observer=told)
    first = tracked.lines(root)
    assert [step for step, _ in first] == [1, 2]
    assert len(first[0][1]) > 20
    assert held() == {"trackio": first, "wandb": first, "tensorboard": as_float32(first)}
    states = {name: json.loads((folder / f"{name}.json").read_text()) for name in NAMES}
    assert all(state["logged"] == 2 for state in states.values())
    ids = {name: state["run"] for name, state in states.items()}
    assert all(run.startswith("tracked-") for run in ids.values())

    # as after kill -9 in step 3, when step 2 was not saved: the resumed run makes it once more
    shutil.rmtree(root / "checkpoints" / "step_00002")
    longer = {"steps": 3, "threads": 1, "mini_batches": 1}
    train(tracked.config(tracking=tracking, training=longer), root, resume=True, observer=told)
    assert told.steps == [1, 2, 2, 3]
    now = settled(tracked.lines(root))
    assert [step for step, _ in now] == [1, 2, 3]
    found = {name: settled(steps) for name, steps in held().items()}
    assert found == {"trackio": now, "wandb": now, "tensorboard": as_float32(now)}
    assert {n: json.loads((folder / f"{n}.json").read_text())["run"] for n in NAMES} == ids
    assert not [note for note in told.notes if any(name in note for name in NAMES)]


class Listed:
    """A tracker that is a list."""

    def __init__(self) -> None:
        self.did: list[Any] = []

    def start(self, config: Any, folder: Path, run: str) -> None:
        self.did.append(("start", run))

    def log(self, step: int, metrics: Any) -> None:
        if "raise" in metrics:
            raise OSError("no route to host")
        self.did.append((step, dict(metrics)))

    def close(self) -> None:
        self.did.append("close")


def run_of(tmp_path: Path, project: str = "forkpoint") -> RunDirectory:
    """A run directory with metrics of steps 0 and 1, tracked."""
    directory = RunDirectory(tmp_path)
    directory.tracking_dir.mkdir(exist_ok=True)
    config = tracked.config(tracking={"to": ["wandb"], "project": project})
    directory.config_json.write_text(config.model_dump_json())
    if not directory.metrics_jsonl.exists():
        log = MetricsLog(directory.metrics_jsonl)
        log.append({"step": 0, "eval/accuracy": 0.5})
        log.append({"step": 1, "reward/mean": 0.25, "grad/norm": float("nan")})
    return directory


def followed(directory: RunDirectory, ended: Any = lambda: True) -> list[Any]:
    tracker = Listed()
    follow.follow("wandb", tracker, directory.root, ended)
    return tracker.did


def test_lines_are_given_as_they_come_whole_and_without_what_was_not_finite(tmp_path: Path) -> None:
    directory = run_of(tmp_path)
    writer = directory.metrics_jsonl.open("a")
    texts = iter(['{"step": 2, "a"', ': 1.5}\n{"step": 3', ', "a": 2.0}\n{"step": 4, "a"'])

    def ended() -> bool:  # a piece is written between two looks
        if text := next(texts, ""):
            writer.write(text)
            writer.flush()
        return not text

    start, *did = followed(directory, ended)
    assert start[0] == "start"
    assert did == [
        (0, {"eval/accuracy": 0.5}),
        (1, {"reward/mean": 0.25}),
        (2, {"a": 1.5}),
        (3, {"a": 2.0}),
        "close",
    ]
    writer.close()


def test_what_was_given_is_not_given_again_unless_to_another_project(tmp_path: Path) -> None:
    (_, run), *did = followed(run_of(tmp_path))
    assert [step for step, _ in did[:-1]] == [0, 1]
    assert followed(run_of(tmp_path)) == [("start", run), "close"]
    MetricsLog(tmp_path / "metrics.jsonl").append({"step": 2, "a": 1.0})
    assert followed(run_of(tmp_path)) == [("start", run), (2, {"a": 1.0}), "close"]
    (_, other), *did = followed(run_of(tmp_path, project="other"))
    assert other != run
    assert [step for step, _ in did[:-1]] == [0, 1, 2]


def test_a_tracker_that_raises_goes_on_after_the_last_step_it_took(tmp_path: Path) -> None:
    directory = run_of(tmp_path)
    MetricsLog(directory.metrics_jsonl).append({"step": 2, "raise": 1.0})
    with pytest.raises(OSError, match="no route"):
        followed(directory)
    text = directory.metrics_jsonl.read_text().replace("raise", "a")
    directory.metrics_jsonl.write_text(text)
    assert followed(directory)[1:] == [(2, {"a": 1.0}), "close"]


def test_a_package_that_is_missing_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"tensorboard": "2.21"}
    monkeypatch.setattr(observer, "package_version", found.get)
    with pytest.raises(ConfigError) as caught:
        train(tracked.config(tracking={"to": NAMES}), tmp_path / "run")
    assert str(caught.value) == (
        "tracking.to names trackio, wandb: pip install trackio wandb (or 'forkpoint[tracking]' for "
        "every tracker)"
    )
    assert not (tmp_path / "run").exists()


def test_a_name_that_is_no_tracker_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"tracking\.to\.0: .*'trackio', 'wandb' or 'tensorboard'"
    ):
        tracked.config(tracking={"to": ["mlflow"]})


def test_a_resumed_run_may_change_its_trackers() -> None:
    fields = type(tracked.config().tracking).model_fields
    assert {f"tracking.{field}" for field in fields} <= MAY_CHANGE
