"""forkpoint: reinforcement learning with verifiable rewards, seen through token entropy."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forkpoint.api import analyze, evaluate, train
    from forkpoint.config import RunConfig, load_config
    from forkpoint.entropy import token_stats
    from forkpoint.losses import policy_loss
    from forkpoint.selection import select_tokens

__version__ = "0.1.0"

__all__ = [
    "RunConfig",
    "analyze",
    "evaluate",
    "load_config",
    "policy_loss",
    "select_tokens",
    "token_stats",
    "train",
]

_HOMES = {
    **dict.fromkeys(("analyze", "evaluate", "train"), "forkpoint.api"),
    **dict.fromkeys(("RunConfig", "load_config"), "forkpoint.config"),
    "policy_loss": "forkpoint.losses",
    "select_tokens": "forkpoint.selection",
    "token_stats": "forkpoint.entropy",
}
"""Where a name is defined; its module is imported when the name is first used."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'forkpoint' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
