"""Problems of the laboratory world, training and held-out ones apart."""

import hashlib
from collections.abc import Sequence
from typing import Literal

from forkpoint.lab.world import LabWorld, legal_moves, number
from forkpoint.randomness import stream
from forkpoint.types import Problem

Split = Literal["train", "held_out"]

HELD_OUT_SHARE = 4
"""One in so many distinct problems is held out."""


def draw_problem(world: LabWorld, *, seed: int, serial: int, split: Split) -> Problem:
    """Problem number ``serial`` of an endless stream; every one can be solved.

    The goal is what one random legal play of the numbers leads to, 1 at least.
    """
    generator = stream(seed, f"lab problem {split}", serial)
    while True:
        numbers = [int(n) for n in generator.integers(1, world.max_number + 1, world.numbers)]
        left = list(numbers)
        while len(left) > 1:
            moves = legal_moves(world, left)
            move = moves[int(generator.integers(len(moves)))]
            left.remove(move.first)
            left.remove(move.second)
            left.append(move.result)
        if left[0] >= 1 and split_of(numbers, left[0]) == split:
            return Problem(
                id=f"lab/{split}/{'-'.join(map(str, numbers))}={left[0]}",
                prompt=prompt_text(numbers, left[0]),
                columns={"numbers": tuple(numbers), "goal": left[0]},
            )


def split_of(numbers: Sequence[int], goal: int) -> Split:
    """Which side a problem is on: by a hash of its sorted numbers and its goal, so that the same
    problem in another order is never on the other side."""
    key = f"{sorted(numbers)} {goal}".encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0 else "train"


def prompt_text(numbers: Sequence[int], goal: int) -> str:
    """``n3 n5 n2 goal n16 :``"""
    return f"{' '.join(map(number, numbers))} goal {number(goal)} :"
