"""The walk: from a start to a goal on a grid, in a fixed number of moves.

The direction of each move is free and everything else is forced, so all skill is in the choices and
none in the length of an answer. With the default verbosity a prompt and an answer read

    at x1 y2 goal x3 y4 :
    go north now x1 y3 go west now x0 y3 ...

A walk is won if it meets the goal at any of its moves. The demonstration policy draws a direction
evenly from those that lead nearer to the goal with probability ``skill``, and else from all legal
ones: a weak skill, which training can sharpen.
"""

import re
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from forkpoint.errors import DataError
from forkpoint.lab.world import EOS, Columns, Position, World, check_whole

ATTEMPTS = 10_000
"""Draws to find a problem."""

Cell = tuple[int, int]

DIRECTIONS = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
WORDS = ("at", "goal", "wall", ":", "go", "from", "so", "now", "|")
PROMPT = re.compile(r"at x(\d+) y(\d+) goal x(\d+) y(\d+)((?: wall x\d+ y\d+)*) :")
WALL = re.compile(r"x(\d+) y(\d+)")


@dataclass(frozen=True, kw_only=True)
class WalkWorld(World):
    """The rules of a walk; the defaults are the ones the shipped policy was trained on."""

    name: ClassVar[str] = "walk"
    columns: ClassVar[frozenset[str]] = frozenset({"start", "goal", "walls"})

    size: int = 8
    """Cells along each side of the grid."""
    moves: int = 8
    """Of every answer; more for a harder world leave more room to err."""
    nearest: int = 3
    """The fewest moves from a start to its goal."""
    farthest: int = 5
    """The most."""
    walls: int = 0
    """Cells that cannot be entered, drawn anew for each problem and named in its prompt."""
    skill: float = 0.3
    """How often the demonstration policy makes sure to come nearer."""
    verbosity: int = 1
    """How much is forced between two decisions, and so the share of true forks: 0 says only every
    second place (``north west now x0 y3``, 40 %), 1 says each (20 %), 2 also the one before
    (``go north from x1 y2 so now x1 y3 |``, 10 %)."""

    def __post_init__(self) -> None:
        check_whole(self, ("size", "moves", "nearest", "farthest", "walls"))
        if not 1 <= self.nearest <= self.farthest <= self.moves:
            raise ValueError("a walk needs 1 <= nearest <= farthest <= moves")
        if self.nearest > 2 * (self.size - 1):
            raise ValueError(f"on a grid of size {self.size} no goal is {self.nearest} moves away")
        if self.walls < 0 or not 0 <= self.skill <= 1 or self.verbosity not in (0, 1, 2):
            raise ValueError("a walk needs walls >= 0, skill in [0, 1] and verbosity 0, 1 or 2")

    def vocabulary(self) -> list[str]:
        """Every word, without special tokens."""
        ends = range(self.size)
        return [*WORDS, *DIRECTIONS, *(f"x{i}" for i in ends), *(f"y{i}" for i in ends)]

    def draw(self, generator: np.random.Generator) -> dict[str, Any]:
        """A start, a goal that lies as far from it as asked for, and walls."""
        for _ in range(ATTEMPTS):
            drawn = generator.integers(0, self.size, (2 + self.walls, 2))
            start, goal, *walls = [(int(x), int(y)) for x, y in drawn]
            if start in walls or goal in walls:
                continue
            distance = distances(self.size, goal, walls).get(start)
            if distance is not None and self.nearest <= distance <= self.farthest:
                return {"start": start, "goal": goal, "walls": tuple(sorted(set(walls)))}
        raise DataError(
            f"{ATTEMPTS} walks drawn, and in none is the goal {self.nearest} to {self.farthest} "
            f"moves away: fewer than {self.walls} walls, or a larger grid"
        )

    def label(self, columns: Columns) -> str:
        """See ``World``."""
        return "-".join(f"x{x}y{y}" for x, y in _cells(columns))

    def prompt(self, columns: Columns) -> str:
        """As in the example above."""
        start, goal, *walls = map(_said, _cells(columns))
        return " ".join(["at", start, "goal", goal, *(f"wall {wall}" for wall in walls), ":"])

    def read(self, prompt: str) -> dict[str, Any] | None:
        """The problem that ``prompt`` put into words; None if it is another text."""
        found = PROMPT.fullmatch(prompt.strip())
        if found is None:
            return None
        start, goal = (int(found[1]), int(found[2])), (int(found[3]), int(found[4]))
        walls = tuple((int(x), int(y)) for x, y in WALL.findall(found[5]))
        if start not in distances(self.size, goal, walls):  # of a larger world, or walled in
            return None
        return {"start": start, "goal": goal, "walls": walls}

    def begin(self, columns: Columns) -> "Walk":
        """The place before the first word."""
        start, goal, *walls = _cells(columns)
        return Walk(self, start, goal, walls)


class Walk(Position):
    """A place on a walk."""

    def __init__(
        self, world: WalkWorld, start: Cell, goal: Cell, walls: Collection[Cell] = ()
    ) -> None:
        super().__init__()
        self.world = world
        self.cell = start
        self._goal = goal
        self._distances = distances(world.size, goal, walls)
        self._left = world.moves
        self._begin_move()

    def _choices(self) -> dict[str, float]:
        if not self._left:
            return {}
        legal = [w for w in DIRECTIONS if _next(self.cell, w) in self._distances]
        here = self._distances[self.cell]
        nearer = [w for w in legal if self._distances[_next(self.cell, w)] < here]
        skill = self.world.skill if nearer else 0.0
        evenly = (1 - skill) / len(legal)
        found = {w: evenly + (skill / len(nearer) if w in nearer else 0.0) for w in legal}
        return {word: p for word, p in found.items() if p > 0}

    def _choose(self, word: str) -> None:
        before, self.cell = self.cell, _next(self.cell, word)
        self.won = self.won or self.cell == self._goal
        self._left -= 1
        if self.world.verbosity == 2:
            self._forced += ["from", *_said(before).split(), "so"]
        if self.world.verbosity >= 1 or self._left % 2 == 0:
            self._forced += ["now", *_said(self.cell).split()]
        if self.world.verbosity == 2:
            self._forced.append("|")
        if self._left:
            self._begin_move()
        else:
            self._forced.append(EOS)

    def _begin_move(self) -> None:
        if self.world.verbosity >= 1:
            self._forced.append("go")


def distances(size: int, goal: Cell, walls: Collection[Cell] = ()) -> dict[Cell, int]:
    """How many moves each cell is from the goal; those that cannot reach it are left out."""
    found = {goal: 0}
    queue = deque([goal])
    while queue:
        cell = queue.popleft()
        for word in DIRECTIONS:
            near = _next(cell, word)
            inside = 0 <= near[0] < size and 0 <= near[1] < size
            if inside and near not in walls and near not in found:
                found[near] = found[cell] + 1
                queue.append(near)
    return found


def _next(cell: Cell, word: str) -> Cell:
    dx, dy = DIRECTIONS[word]
    return cell[0] + dx, cell[1] + dy


def _cells(columns: Columns) -> list[Cell]:
    """Start, goal, walls."""
    return [columns["start"], columns["goal"], *columns["walls"]]


def _said(cell: Cell) -> str:
    return f"x{cell[0]} y{cell[1]}"
