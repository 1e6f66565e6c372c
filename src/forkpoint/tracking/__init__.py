"""Other places for the lines of metrics.jsonl, each served by a process that reads that file."""

from forkpoint.tracking.observer import Tracking, refuse_missing

__all__ = ["Tracking", "refuse_missing"]
