"""What a run leaves on disk, and how to read it back; docs/run-directory.md is the schema."""

from forkpoint.runs.directory import RunDirectory
from forkpoint.runs.metrics_log import MetricsLog, read_metrics
from forkpoint.runs.rollouts import RolloutRow, read_rollouts, write_rollouts

__all__ = [
    "MetricsLog",
    "RolloutRow",
    "RunDirectory",
    "read_metrics",
    "read_rollouts",
    "write_rollouts",
]
