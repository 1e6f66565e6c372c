"""Problems of a laboratory world, training and held-out ones apart, and who solved them."""

import hashlib
from typing import Literal

from forkpoint.lab.world import EOS, Columns, IllegalWordError, World
from forkpoint.randomness import stream
from forkpoint.types import Problem

Split = Literal["train", "held_out"]

HELD_OUT_SHARE = 4
"""One in so many distinct problems is held out."""


def draw_problem(world: World, *, seed: int, serial: int, split: Split) -> Problem:
    """Problem number ``serial`` of an endless stream; every one can be solved."""
    generator = stream(seed, f"lab problem {split}", serial)
    while True:
        columns = world.draw(generator)
        if split_of(world, columns) == split:
            return Problem(
                id=f"lab/{split}/{world.label(columns)}",
                prompt=world.prompt(columns),
                columns=columns,
            )


def split_of(world: World, columns: Columns) -> Split:
    """Which side a problem is on: by a hash of its kind, so that the same problem in another form
    is never on the other side."""
    digest = hashlib.blake2b(world.kind(columns).encode(), digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0 else "train"


def verify(world: World, columns: Columns, text: str) -> float:
    """1.0 if every word of ``text`` is legal, nothing but the end may follow, and the goal was
    reached, else 0.0.

    Args:
        text: a completion without special tokens; anything else than a legal answer is 0.0, never
            an error.
    """
    position = world.begin(columns)
    try:
        for word in text.split():
            position.advance(word)
    except IllegalWordError:
        return 0.0
    return 1.0 if position.won and position.distribution() == {EOS: 1.0} else 0.0
