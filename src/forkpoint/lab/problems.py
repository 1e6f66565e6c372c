"""Problems of the laboratory world, training and held-out ones apart, and who solved them."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from forkpoint.lab.world import EOS, IllegalWordError, LabWorld, Walk, legal_moves, number
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
                prompt=f"{' '.join(map(number, numbers))} goal {number(left[0])} :",
                columns={"numbers": tuple(numbers), "goal": left[0]},
            )


def split_of(numbers: Sequence[int], goal: int) -> Split:
    """Which side a problem is on: by a hash of its sorted numbers and its goal, so that the same
    problem in another order is never on the other side."""
    key = f"{sorted(numbers)} {goal}".encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0 else "train"


def verify(world: LabWorld, columns: Mapping[str, Any], text: str) -> float:
    """1.0 if every word of ``text`` is legal and the last one declares a true win, else 0.0.

    Args:
        columns: ``numbers`` and ``goal`` of the problem.
        text: a completion without special tokens; anything else than a legal game is 0.0, never
            an error.
    """
    walk = Walk(world, columns["numbers"], columns["goal"])
    try:
        for word in text.split():
            walk.advance(word)
    except IllegalWordError:
        return 0.0
    return 1.0 if walk.won and walk.distribution() == {EOS: 1.0} else 0.0
