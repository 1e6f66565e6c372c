"""What a world of the laboratory is: problems, and a language in which every choice is known.

An answer is written word by word. At each word the world says what may follow and how likely the
demonstration policy says it; where more than one word may, there is a true fork.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

EOS = "<eos>"

Columns = Mapping[str, Any]
"""A problem of a world, such as ``{"numbers": (3, 5, 2), "goal": 16}``."""


def check_whole(world: Any, names: Sequence[str]) -> None:
    """
    Raises:
        ValueError: one of these rules is no whole number.
    """
    for name in names:
        if not isinstance(value := getattr(world, name), int):
            raise ValueError(f"{name} = {value!r} is no whole number")


class IllegalWordError(ValueError):
    """The demonstration policy never says this here."""


class Position(ABC):
    """A place in an answer: what may be said next, and how likely the demonstration says it."""

    def __init__(self) -> None:
        self.won = False
        """Whether the goal was reached."""
        self._forced: list[str] = []  # words that follow without a choice, next one first

    @property
    def ended(self) -> bool:
        """Whether the end of the text was said."""
        return not self.distribution()

    def distribution(self) -> dict[str, float]:
        """Word -> probability; empty once the text has ended."""
        return {self._forced[0]: 1.0} if self._forced else self._choices()

    def advance(self, word: str) -> None:
        """Say a word.

        Raises:
            IllegalWordError: its probability is 0.
        """
        if self._forced:
            if word != self._forced[0]:
                raise IllegalWordError(f"{word!r} where only {self._forced[0]!r} may follow")
            del self._forced[0]
            return
        choices = self._choices()
        if word not in choices:
            raise IllegalWordError(f"{word!r} where one of {list(choices)} may follow")
        self._choose(word)

    @abstractmethod
    def _choices(self) -> dict[str, float]:
        """Word -> probability where nothing is forced; empty at the end of the text."""

    @abstractmethod
    def _choose(self, word: str) -> None:
        """Go on with one of ``_choices``; what follows from it is put into ``_forced``."""


class World(ABC):
    """The rules of a world."""

    name: ClassVar[str]
    columns: ClassVar[frozenset[str]]
    """What a problem has."""

    @abstractmethod
    def vocabulary(self) -> list[str]:
        """Every word of the language, without special tokens."""

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> dict[str, Any]:
        """A problem that can be solved."""

    @abstractmethod
    def label(self, columns: Columns) -> str:
        """A problem's name, without a space."""

    def kind(self, columns: Columns) -> str:
        """Equal for problems that differ in nothing that matters: they are trained on or held out
        together."""
        return self.label(columns)

    @abstractmethod
    def prompt(self, columns: Columns) -> str:
        """A problem in words."""

    @abstractmethod
    def read(self, prompt: str) -> dict[str, Any] | None:
        """The problem of a prompt; None if it is none of this world."""

    @abstractmethod
    def begin(self, columns: Columns) -> Position:
        """The place before the first word of an answer."""


def demonstrate(world: World, columns: Columns, generator: np.random.Generator) -> list[str]:
    """A whole answer drawn from the demonstration policy, the end of text included."""
    position = world.begin(columns)
    words: list[str] = []
    while choices := position.distribution():
        listed = list(choices)
        index = 0
        if len(listed) > 1:
            index = int(generator.choice(len(listed), p=list(choices.values())))
        position.advance(listed[index])
        words.append(listed[index])
    return words
