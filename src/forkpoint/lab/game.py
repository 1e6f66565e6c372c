"""The game: numbers are combined until one is left, and the player may start over.

Given some numbers and a goal, two numbers at a time are replaced by their sum, difference or
product until one is left; it is checked against the goal; if it is not the goal, the player may
start over. With the default verbosity a try reads

    pick n3 and n5 : n3 + n5 = n8 ; left n2 n8 |
    pick n8 and n2 : n8 * n2 = n16 ; check n16 = n16 yes

The demonstration policy draws (first, second, operator) uniformly from the legal triples and, after
a failure, tries again with ``again_probability``. Its next-word distribution is a function of the
words so far: ``Game.distribution``.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from forkpoint.lab.world import EOS, Columns, Position, World, check_whole

OPERATORS = ("+", "-", "*")
WORDS = ("pick", "and", ":", "=", ";", "left", "|", "check", "yes", "no", "again", "stop", "goal")


PROMPT = re.compile(r"((?:n\d+ )+)goal n(\d+) :")


@dataclass(frozen=True, kw_only=True)
class GameWorld(World):
    """The rules of a game; the defaults are the ones the shipped policy was trained on."""

    name: ClassVar[str] = "game"
    columns: ClassVar[frozenset[str]] = frozenset({"numbers", "goal"})

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

    def __post_init__(self) -> None:
        check_whole(self, ("numbers", "max_number", "max_result", "max_tries"))
        if self.numbers < 2 or not 1 <= self.max_number <= self.max_result or self.max_tries < 1:
            raise ValueError(
                "a game needs numbers >= 2, 1 <= max_number <= max_result and max_tries >= 1"
            )
        if not 0 <= self.again_probability <= 1 or self.verbosity not in (0, 1, 2):
            raise ValueError("a game needs again_probability in [0, 1] and verbosity 0, 1 or 2")

    def vocabulary(self) -> list[str]:
        """Every word of the language, without special tokens."""
        return [*WORDS, *OPERATORS, *(number(i) for i in range(self.max_result + 1))]

    def draw(self, generator: np.random.Generator) -> dict[str, Any]:
        """Numbers, and as the goal what one random legal play of them leads to, 1 at least."""
        while True:
            numbers = [int(n) for n in generator.integers(1, self.max_number + 1, self.numbers)]
            left = list(numbers)
            while len(left) > 1:
                moves = legal_moves(self, left)
                move = moves[int(generator.integers(len(moves)))]
                left.remove(move.first)
                left.remove(move.second)
                left.append(move.result)
            if left[0] >= 1:
                return {"numbers": tuple(numbers), "goal": left[0]}

    def label(self, columns: Columns) -> str:
        """See ``World``."""
        return f"{'-'.join(map(str, columns['numbers']))}={columns['goal']}"

    def kind(self, columns: Columns) -> str:
        """The same numbers in another order are the same problem."""
        return f"{sorted(columns['numbers'])} {columns['goal']}"

    def prompt(self, columns: Columns) -> str:
        """As in the example above."""
        return f"{' '.join(map(number, columns['numbers']))} goal {number(columns['goal'])} :"

    def read(self, prompt: str) -> dict[str, Any] | None:
        """The problem that ``prompt`` put into words; None if it is another text."""
        found = PROMPT.fullmatch(prompt.strip())
        if found is None:
            return None
        numbers = tuple(int(word[1:]) for word in found[1].split())
        return {"numbers": numbers, "goal": int(found[2])}

    def begin(self, columns: Columns) -> "Game":
        """The place before the first word."""
        return Game(self, columns["numbers"], columns["goal"])


class Move(NamedTuple):
    """first operator second = result."""

    first: int
    second: int
    operator: str
    result: int


def number(value: int) -> str:
    """The word for a number."""
    return f"n{value}"


def legal_moves(world: GameWorld, numbers: Sequence[int]) -> list[Move]:
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


class Game(Position):
    """A place in a game."""

    def __init__(self, world: GameWorld, numbers: Sequence[int], goal: int) -> None:
        super().__init__()
        self.world = world
        self.goal = goal
        self._start = list(numbers)
        self._tries = 0
        self._moves: list[Move] = []  # legal moves that agree with what was said of the next one
        self._stage = ""  # the choice after the forced words: first, second, operator, again
        self._begin_try()

    def _choices(self) -> dict[str, float]:
        if self._stage == "":
            return {}
        if self._stage == "again":
            again = self.world.again_probability
            return {w: p for w, p in (("again", again), ("stop", 1 - again)) if p > 0}
        counts = Counter(self._word(move) for move in self._moves)
        return {word: count / len(self._moves) for word, count in counts.items()}

    def _choose(self, word: str) -> None:
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
