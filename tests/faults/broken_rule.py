"""A selection rule that raises when it is told to."""

from torch import Tensor

from forkpoint.selection.rules import RULES, Candidates

raises_at: tuple[int, int] | None = None
"""(step, how often it has been called in that step before it raises)."""

calls: dict[int, int] = {}


def top_or_raise(candidates: Candidates) -> Tensor:
    """The built-in rule ``top``, until it raises."""
    step = candidates.step
    before = calls.get(step, 0)
    calls[step] = before + 1
    if raises_at == (step, before):
        raise ValueError("not today")
    return RULES["top"](candidates)
