"""A world of the laboratory as a task."""

from functools import partial

from forkpoint.config.stages import LabTaskConfig
from forkpoint.lab import build_world, draw_problem, verify
from forkpoint.tasks.base import Task
from forkpoint.types import Problem


class LabTask(Task):
    """See ``forkpoint.lab``."""

    def __init__(self, config: LabTaskConfig) -> None:
        self.world = build_world(config.world, config.parameters)
        self.columns = self.world.columns
        self.verifier = partial(verify, self.world)
        self._seed = config.seed

    def problem(self, serial: int) -> Problem:
        return draw_problem(self.world, seed=self._seed, serial=serial, split="train")

    def held_out(self, count: int, seed: int) -> list[Problem]:
        return [
            draw_problem(self.world, seed=seed, serial=serial, split="held_out")
            for serial in range(count)
        ]
