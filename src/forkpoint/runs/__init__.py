"""What a run leaves on disk, and how to read it back; docs/run-directory.md is the schema."""

from forkpoint.runs.directory import RunDirectory
from forkpoint.runs.metrics_log import MetricsLog, read_metrics

__all__ = ["MetricsLog", "RunDirectory", "read_metrics"]
