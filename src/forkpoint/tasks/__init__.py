"""Where problems come from: the laboratory, reasoning-gym, or a data set of yours."""

from forkpoint.tasks.base import Task
from forkpoint.tasks.build import build_task

__all__ = ["Task", "build_task"]
