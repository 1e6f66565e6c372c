"""Which tokens get a policy gradient: a rule applied within a scope.

What is named here is imported when it is first used: ``selection.radix`` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forkpoint.selection.candidates import Candidates, Rule
    from forkpoint.selection.rules import RULES
    from forkpoint.selection.scopes import scope_groups, select
    from forkpoint.selection.tokens import select_tokens

__all__ = ["RULES", "Candidates", "Rule", "scope_groups", "select", "select_tokens"]

_HOMES = {
    "Candidates": "candidates",
    "Rule": "candidates",
    "scope_groups": "scopes",
    "select": "scopes",
    "select_tokens": "tokens",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'rules')}"), name)
