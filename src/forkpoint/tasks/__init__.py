"""Where problems come from: the laboratory, reasoning-gym, or a data set of yours."""

from forkpoint.tasks.base import Task, build_task

__all__ = ["Task", "build_task"]
