"""Short runs with trackers, and what each tracker has of them."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forkpoint.config import RunConfig, parse_config
from forkpoint.runs import read_metrics

Steps = list[tuple[int, dict[str, float]]]


class Told:
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[int] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, metrics: dict[str, float]) -> None:
        self.steps.append(int(metrics["step"]))


def config(**sections: Any) -> RunConfig:
    """A step takes a second; step 1 is trained on."""
    small = {
        "name": "tracked",
        "model": {"path": "lab:walk"},
        "rollout": {"prompts_per_step": 2, "group_size": 4, "max_new_tokens": 48},
        "training": {"steps": 2, "threads": 1, "mini_batches": 1},
        "checkpoint": {"every": 1},
    }
    return parse_config({**small, **sections})


def lines(root: Path) -> Steps:
    """metrics.jsonl, as trackers are given it."""
    return [
        (int(line.pop("step") or 0), {k: v for k, v in line.items() if v is not None})
        for line in read_metrics(root / "metrics.jsonl")
    ]


def in_tensorboard(folder: Path) -> Steps:
    """What TensorBoard itself reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    steps: dict[int, dict[str, float]] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            assert tag not in steps.setdefault(event.step, {})
            steps[event.step][tag] = event.value
    return sorted(steps.items())


def in_trackio(project: str, run: str) -> Steps:
    """From its database, in the order of logging."""
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs(project, run)
    return [
        (row["step"], {k: v for k, v in row.items() if k not in ("step", "timestamp")})
        for row in rows
    ]


def in_wandb(folder: Path) -> Steps:
    """From the files of its offline runs, in the order of their starts."""
    from wandb.proto import wandb_internal_pb2

    steps: Steps = []
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        for data in _records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)  # type: ignore[attr-defined]
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                values = {
                    (i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items
                }
                own = {k: v for k, v in values.items() if not k.startswith("_")}
                steps.append((record.history.step.num, own))
    return steps


def _records(data: bytes) -> Iterator[bytes]:
    """LevelDB's log format: blocks of 32 KiB, records cut at their ends."""
    place, record = 7, b""  # after wandb's own header
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""
