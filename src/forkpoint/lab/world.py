"""The game and its demonstration policy, as one state machine.

Given some numbers and a goal, two numbers at a time are replaced by their sum, difference or
product until one is left; it is checked against the goal; if it is not the goal, the player may
start over. With the default verbosity a try reads

    pick n3 and n5 : n3 + n5 = n8 ; left n2 n8 |
    pick n8 and n2 : n8 * n2 = n16 ; check n16 = n16 yes

The demonstration policy draws (first, second, operator) uniformly from the legal triples and, after
a failure, tries again with ``again_probability``. Its next-word distribution is a function of the
words so far: ``Walk.distribution``.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

EOS = "<eos>"
OPERATORS = ("+", "-", "*")
WORDS = ("pick", "and", ":", "=", ";", "left", "|", "check", "yes", "no", "again", "stop", "goal")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabWorld:
    """The rules of one world; the defaults are the ones the shipped policy was trained on."""

    numbers: int = 3
    """Numbers a problem starts with."""
    max_number: int = 9
    max_result: int = 99
    """Results must lie in 0..max_result."""
    max_tries: int = 5
    again_probability: float = 0.25
    """The probability of trying again after a failure; at the last try the player must stop."""
    verbosity: int = 2
    """How much is forced between two decisions, and so the share of true forks:
    0 says only the decisions and the result (``n3 n5 + n8 ;``), 1 spells out the step, 2 also what
    is left after it."""

    def vocabulary(self) -> list[str]:
        """Every word of the language, without special tokens."""
        return [*WORDS, *OPERATORS, *(number(i) for i in range(self.max_result + 1))]


class Move(NamedTuple):
    """first operator second = result."""

    first: int
    second: int
    operator: str
    result: int


class IllegalWordError(ValueError):
    """The demonstration policy never says this here."""


def number(value: int) -> str:
    """The word for a number."""
    return f"n{value}"


def legal_moves(world: LabWorld, numbers: Sequence[int]) -> list[Move]:
    """Every (i, j, operator) with i != j and a result in range; equal numbers give equal moves."""
    moves = []
    for i, first in enumerate(numbers):
        for j, second in enumerate(numbers):
            results = {"+": first + second, "-": first - second, "*": first * second}
            moves += [
                Move(first, second, operator, result)
                for operator, result in results.items()
                if i != j and 0 <= result <= world.max_result
            ]
    return moves


class Walk:
    """A position in a game: what may be said next, and how likely the demonstration says it."""

    def __init__(self, world: LabWorld, numbers: Sequence[int], goal: int) -> None:
        self.world = world
        self.goal = goal
        self.won = False
        """Whether the goal was reached and the win declared."""
        self._start = list(numbers)
        self._tries = 0
        self._forced: list[str] = []  # words that follow without a choice, next one first
        self._moves: list[Move] = []  # legal moves that agree with what was said of the next one
        self._stage = ""  # the choice after the forced words: first, second, operator, again
        self._begin_try()

    @property
    def ended(self) -> bool:
        """Whether the end of the text was said."""
        return not self._forced and self._stage == ""

    def distribution(self) -> dict[str, float]:
        """Word -> probability; empty once the text has ended."""
        if self._forced:
            return {self._forced[0]: 1.0}
        if self._stage == "":
            return {}
        if self._stage == "again":
            again = self.world.again_probability
            return {w: p for w, p in (("again", again), ("stop", 1 - again)) if p > 0}
        counts = Counter(self._word(move) for move in self._moves)
        return {word: count / len(self._moves) for word, count in counts.items()}

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
        if word not in self.distribution():
            raise IllegalWordError(f"{word!r} where one of {list(self.distribution())} may follow")
        if self._stage == "again":
            if word == "again":
                self._begin_try()
            else:
                self._stage = ""
                self._forced.append(EOS)
        else:
            self._moves = [move for move in self._moves if self._word(move) == word]
            self._continue_move(word)

    def _word(self, move: Move) -> str:
        """What is said of a move at the present stage."""
        if self._stage == "operator":
            return move.operator
        return number(move.first if self._stage == "first" else move.second)

    def _begin_try(self) -> None:
        self._tries += 1
        self._left = list(self._start)
        self._begin_move()

    def _begin_move(self) -> None:
        if self.world.verbosity >= 1:
            self._forced.append("pick")
        self._moves = legal_moves(self.world, self._left)
        self._stage = "first"

    def _continue_move(self, word: str) -> None:
        spells = self.world.verbosity >= 1
        if self._stage == "first":
            self._forced += ["and"] if spells else []
            self._stage = "second"
        elif self._stage == "second":
            self._forced += [":", number(self._moves[0].first)] if spells else []
            self._stage = "operator"
        else:
            self._finish_move(self._moves[0])

    def _finish_move(self, move: Move) -> None:
        if self.world.verbosity >= 1:
            self._forced += [number(move.second), "="]
        self._forced += [number(move.result), ";"]
        self._left.remove(move.first)
        self._left.remove(move.second)
        self._left.append(move.result)
        if len(self._left) == 1:
            self._check(move.result)
            return
        if self.world.verbosity >= 2:
            self._forced += ["left", *map(number, self._left), "|"]
        self._begin_move()

    def _check(self, result: int) -> None:
        self.won = result == self.goal
        verdict = "yes" if self.won else "no"
        self._forced += ["check", number(result), "=", number(self.goal), verdict]
        self._stage = "" if self.won else "again"
        if self.won:
            self._forced.append(EOS)
        elif self._tries == self.world.max_tries:
            self._stage = ""
            self._forced += ["stop", EOS]


def demonstrate(
    world: LabWorld, numbers: Sequence[int], goal: int, generator: np.random.Generator
) -> list[str]:
    """A whole answer drawn from the demonstration policy, the end of text included."""
    walk = Walk(world, numbers, goal)
    words: list[str] = []
    while not walk.ended:
        distribution = walk.distribution()
        choices = list(distribution)
        index = 0
        if len(choices) > 1:
            index = int(generator.choice(len(choices), p=list(distribution.values())))
        walk.advance(choices[index])
        words.append(choices[index])
    return words
