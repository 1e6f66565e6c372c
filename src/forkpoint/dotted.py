"""Finding a user's function by its dotted path."""

import difflib
import importlib
import sys
from pathlib import Path
from typing import Any

from forkpoint.errors import ConfigError


def resolve(path: str, key: str) -> Any:
    """The callable at ``package.module:name``; the working directory is importable.

    Raises:
        ConfigError: naming ``key`` and the nearest name there is.
    """
    module_name, colon, name = path.partition(":")
    if not colon:
        raise ConfigError(f"{key} = {path!r} is neither a known name nor package.module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:  # the latter for "" and ".name"
        raise ConfigError(f"{key} = {path!r}: cannot import {module_name!r}: {error}") from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {module_name}:{near[0]}?" if near else ""
        raise ConfigError(f"{key} = {path!r}: {module_name} has no {name!r}{hint}")
    found = getattr(module, name)
    if not callable(found):
        raise ConfigError(f"{key} = {path!r} is not a function but {type(found).__name__}")
    return found
