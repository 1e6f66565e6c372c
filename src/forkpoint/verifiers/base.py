"""What a verifier is."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Verifier: TypeAlias = Callable[[Mapping[str, Any], str], float | None]
"""(a problem's columns, a completion's text) -> score; must be picklable: it runs in a process of
its own that can be killed. None leaves the sample out."""


def column(columns: Mapping[str, Any], path: str) -> Any:
    """A column's value; dots walk into nested ones (``reward_model.ground_truth``)."""
    value: Any = columns
    for part in path.split("."):
        value = value[part]
    return value
