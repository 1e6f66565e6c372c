"""The laboratory world as a task."""

from functools import partial

from forkpoint.config.stages import LabTaskConfig
from forkpoint.lab import LabWorld, draw_problem, verify
from forkpoint.tasks.base import Task
from forkpoint.types import Problem


class LabTask(Task):
    """Arithmetic games; see ``forkpoint.lab``."""

    columns = frozenset({"numbers", "goal"})

    def __init__(self, config: LabTaskConfig) -> None:
        self.world = LabWorld(verbosity=config.verbosity)
        self.verifier = partial(verify, self.world)
        self._seed = config.seed

    def problem(self, serial: int) -> Problem:
        return draw_problem(self.world, seed=self._seed, serial=serial, split="train")

    def held_out(self, count: int, seed: int) -> list[Problem]:
        return [
            draw_problem(self.world, seed=seed, serial=serial, split="held_out")
            for serial in range(count)
        ]
