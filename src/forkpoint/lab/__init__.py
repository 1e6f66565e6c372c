"""The laboratory: tiny languages in which every fork and every entropy is known.

In an answer a few words are free decisions and the rest is forced, so the true forks of a text, and
the true entropy of the demonstration policy at each of its positions, are functions: see ``truth``.
In the world ``walk`` all skill is in the choices; in ``game`` a longer answer has more tries. Of
each a policy of under a million weights, trained on demonstrations, is shipped; reinforcement
learning teaches it to win.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from forkpoint.errors import DataError
from forkpoint.lab.game import GameWorld
from forkpoint.lab.problems import draw_problem, verify
from forkpoint.lab.truth import ForkDetection, fork_detection, truth_of
from forkpoint.lab.walk import WalkWorld
from forkpoint.lab.world import EOS, World

WORLDS: dict[str, type[World]] = {"game": GameWorld, "walk": WalkWorld}


def build_world(name: str, parameters: Mapping[str, Any] | None = None) -> World:
    """A world by its name, with other rules than those of the shipped policy where they are given.

    Raises:
        DataError: it has no such rule, or the rules make no world.
    """
    kind, given = WORLDS[name], dict(parameters or {})
    known = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]
    if unknown := sorted(given.keys() - set(known)):
        raise DataError(
            f"task.parameters: the world {name!r} has no {unknown[0]!r}, but {', '.join(known)}"
        )
    try:
        return kind(**given)
    except ValueError as error:
        raise DataError(f"task.parameters of the world {name!r}: {error}") from error


BASE_POLICIES = {f"lab:{name}": Path(__file__).parent / f"base_{name}" for name in WORLDS}
"""``model.path`` -> the shipped policy, as transformers reads it."""

__all__ = [
    "BASE_POLICIES",
    "EOS",
    "WORLDS",
    "ForkDetection",
    "GameWorld",
    "WalkWorld",
    "World",
    "build_world",
    "draw_problem",
    "fork_detection",
    "truth_of",
    "verify",
]
