"""What a task is: an endless stream of problems, held-out ones beside it, maybe a verifier."""

from typing import Protocol

from forkpoint.types import Message, Problem
from forkpoint.verifiers.base import Verifier


class Task(Protocol):
    """Problems to train on and, apart from them, problems to evaluate on."""

    @property
    def columns(self) -> frozenset[str]:
        """The columns every problem has, for rewards to check theirs against."""
        ...

    @property
    def verifier(self) -> Verifier | None:
        """The task's own, if it has one."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever starts a run should know, a line each."""
        ...

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
