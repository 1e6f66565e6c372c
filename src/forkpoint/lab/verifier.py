"""Was the game played by the rules, and won?"""

from collections.abc import Mapping
from typing import Any

from forkpoint.lab.world import EOS, IllegalWordError, LabWorld, Walk


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
