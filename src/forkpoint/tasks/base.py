"""What a task is: an endless stream of problems, held-out ones beside it, maybe a verifier."""

import difflib
from collections.abc import Collection
from typing import Protocol

from forkpoint.config.stages import DataTaskConfig, GymTaskConfig, LabTaskConfig, TaskConfig
from forkpoint.errors import DataError
from forkpoint.types import Message, Problem
from forkpoint.verifiers.text import Verifier


class Task(Protocol):
    """Problems to train on and, apart from them, problems to evaluate on."""

    columns: frozenset[str]
    """The columns every problem has, for rewards to check theirs against."""
    verifier: Verifier | None = None
    """The task's own, if it has one."""
    notes: tuple[str, ...] = ()
    """What whoever starts a run should know, a line each."""
    count: int | None = None
    """Of the problems that there are to train on; None: they are made as they are asked for."""
    digest: str | None = None
    """Equal for equal problems in equal order; None where settings and seed say which they are."""

    def problem(self, serial: int) -> Problem:
        """Number ``serial`` of the training stream: a function of the task's seed and serial."""
        ...

    def held_out(self, count: int, seed: int) -> list[Problem]:
        """Up to ``count`` problems that the training stream never gives.

        Raises:
            DataError: there are none.
        """
        ...


def ask(text: str, *, chat: bool) -> str | tuple[Message, ...]:
    """A question as a prompt: one user message for the model's chat template, or plain text."""
    return ({"role": "user", "content": text},) if chat else text


def require_column(columns: Collection[str], name: str, key: str, where: str) -> None:
    """Refuse data without a column.

    Args:
        key: the setting that names the column.
        where: whose columns they are, for the message.

    Raises:
        DataError: naming the columns there are, and the nearest one.
    """
    if name not in columns:
        near = difflib.get_close_matches(name, columns, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"{where} has no column {name!r} ({key}); it has {', '.join(sorted(columns))}{hint}"
        )


def build_task(config: TaskConfig) -> Task:
    """The task a recipe names; each heavy library is imported by the one task that needs it."""
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
