"""From ``[task]`` to a task. Each heavy library is imported by the one task that needs it."""

from forkpoint.config.stages import DataTaskConfig, GymTaskConfig, LabTaskConfig, TaskConfig
from forkpoint.tasks.base import Task


def build_task(config: TaskConfig) -> Task:
    """The task a recipe names."""
    match config:
        case LabTaskConfig():
            from forkpoint.tasks.lab import LabTask

            return LabTask(config)
        case GymTaskConfig():
            from forkpoint.tasks.gym import GymTask

            return GymTask(config)
        case DataTaskConfig():
            from forkpoint.tasks.data import DataTask

            return DataTask(config)
