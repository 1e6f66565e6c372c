"""Which trackers get a run's metrics."""

from typing import Literal

from pydantic import Field

from forkpoint.config.stages import Stage


class TrackingConfig(Stage):
    """Where else the lines of metrics.jsonl go: see docs/tracking.md."""

    to: tuple[Literal["trackio", "wandb", "tensorboard"], ...] = ()
    project: str = Field(default="forkpoint", min_length=1)
    """Of trackio and wandb."""
