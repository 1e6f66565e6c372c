"""The trackers: how each takes a run's numbers. Their packages are imported when they start."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from forkpoint.config import RunConfig


class Tracker(Protocol):
    """Somewhere that numbers of a run can be seen."""

    def start(self, config: RunConfig, folder: Path, run: str) -> None:
        """Begin, or go on with, the run of this name.

        Args:
            folder: for what the tracker keeps on this machine.
            run: the same whenever the run goes on, and no other run's.
        """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the numbers of a step; steps come in rising order."""

    def close(self) -> None:
        """Deliver what is on its way."""


class Trackio:
    """Into trackio's database on this machine, or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL
    leads."""

    def start(self, config: RunConfig, folder: Path, run: str) -> None:
        """trackio finds a run by its name, so the name is the one that no other run has."""
        import trackio

        self._run = trackio.init(
            project=config.tracking.project,
            name=run,
            resume="allow",
            config=config.model_dump(mode="json"),
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class Wandb:
    """To Weights & Biases, or with WANDB_MODE=offline into ``folder`` alone."""

    def start(self, config: RunConfig, folder: Path, run: str) -> None:
        """The run is shown by the name in the configuration and found by its id."""
        import wandb

        self._run = wandb.init(
            project=config.tracking.project,
            name=config.name,
            id=run,
            resume="allow",
            dir=folder,
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(console="off"),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        # without commit a step is kept back until the next one
        self._run.log(dict(metrics), step=step, commit=True)

    def close(self) -> None:
        self._run.finish()


class Tensorboard:
    """Event files in ``folder/tensorboard``; TensorBoard keeps numbers in float32."""

    def start(self, config: RunConfig, folder: Path, run: str) -> None:
        """A file of its own beside those of earlier starts: TensorBoard reads them as one run."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder / "tensorboard"))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One event a step, on disk at once."""
        from tensorboard.compat.proto import event_pb2, summary_pb2

        events: Any = event_pb2  # protobuf makes the classes when the module is imported
        summaries: Any = summary_pb2
        values = [summaries.Summary.Value(tag=k, simple_value=v) for k, v in metrics.items()]
        summary = summaries.Summary(value=values)
        self._writer.add_event(events.Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


TRACKERS: dict[str, type[Tracker]] = {
    "trackio": Trackio,
    "wandb": Wandb,
    "tensorboard": Tensorboard,
}
"""By the names in ``tracking.to``, which are those of their packages, too."""
