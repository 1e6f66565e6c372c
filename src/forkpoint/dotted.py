"""Code of the user's: found by its dotted path, and named when it raises."""

import difflib
import importlib
import sys
import traceback
from collections.abc import Callable
from itertools import count, dropwhile
from pathlib import Path
from typing import Any

from forkpoint.errors import ConfigError, ForkpointError, UserCodeError

PACKAGE = Path(__file__).parent

GIVEN = "python"
"""The module in the path of a callable that was given in Python and that no import finds."""
_GIVEN: dict[str, Callable[..., Any]] = {}


def path_of(function: Callable[..., Any], setting: str) -> str:
    """The path under which ``resolve`` finds a callable, ``package.module:name``.

    A callable that another process could not import, such as a lambda or one that a notebook
    defines, gets the path ``python:name@setting``, which holds in this process only.

    A number follows where the name is taken; ``same_path`` leaves it out.

    Args:
        setting: what the callable is for; two lambdas of one call have the same name.
    """
    module = getattr(function, "__module__", None) or "__main__"
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    if module != "__main__" and getattr(sys.modules.get(module), name, None) is function:
        return f"{module}:{name}"
    given = name = f"{name}@{setting}"
    for number in count(2):  # another run of this process may still use one of this name
        if _GIVEN.setdefault(given, function) is function:
            return f"{GIVEN}:{given}"
        given = f"{name}#{number}"
    raise AssertionError("count never ends")


def same_path(value: Any) -> Any:
    """A setting as a run and the run that goes on with it have in common: ``python:name@setting``
    without its number, in lists and mappings too."""
    if isinstance(value, dict):
        return {key: same_path(one) for key, one in value.items()}
    if isinstance(value, list):
        return [same_path(one) for one in value]
    given = isinstance(value, str) and value.startswith(f"{GIVEN}:")
    return value.partition("#")[0] if given else value


def resolve(path: str, key: str) -> Any:
    """The callable at ``package.module:name``; the working directory is importable.

    Raises:
        ConfigError: naming ``key``, and the nearest name there is, or the line of the module that
            raised while it was imported.
    """
    module_name, colon, name = path.partition(":")
    if not colon:
        raise ConfigError(f"{key} = {path!r} is neither a known name nor package.module:function")
    if module_name == GIVEN:
        if name not in _GIVEN:
            raise ConfigError(
                f"{key} = {path!r} was given in Python, by a process that is gone: give it again, "
                "as an argument of forkpoint.train"
            )
        return _GIVEN[name]
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script may end the process when it is imported
        # above a module's own lines are those of whatever imports it
        frames = list(dropwhile(lambda frame: frame.name != "<module>", _frames(error)))
        place = _place(error, frames)
        reason = f"{_said(error)} ({place})" if place else str(error)
        raise ConfigError(f"{key} = {path!r}: cannot import {module_name!r}: {reason}") from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {module_name}:{near[0]}?" if near else ""
        raise ConfigError(f"{key} = {path!r}: {module_name} has no {name!r}{hint}")
    found = getattr(module, name)
    if not callable(found):
        raise ConfigError(f"{key} = {path!r} is not a function but {type(found).__name__}")
    return found


def call_users(function: Callable[..., Any], *arguments: Any, setting: str) -> Any:
    """``function(*arguments)``, which may be of the user's.

    Args:
        setting: what named the function, such as ``selection.rule = 'my_rules:mine'``.

    Raises:
        UserCodeError: it raised: with the line of the user's file and what it said. An error of
            this package's own passes as it is.
    """
    try:
        return function(*arguments)
    except ForkpointError:
        raise
    except Exception as error:
        frames = _frames(error)
        if frames and Path(frames[0].filename).is_relative_to(PACKAGE):
            raise  # a fault of ours
        place = _place(error, frames)
        where = f" ({place})" if place else ""
        raise UserCodeError(f"{setting} raised {_said(error)}{where}") from error


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames below this file's."""
    return list(traceback.extract_tb(error.__traceback__)[1:])


def _place(error: BaseException, frames: list[traceback.FrameSummary]) -> str | None:
    """The user's file and line that raised: the deepest frame beside the first of the user's."""
    if frames:
        folder = Path(frames[0].filename).parent
        last = [frame for frame in frames if Path(frame.filename).parent == folder][-1]
        return f"{last.filename}, line {last.lineno}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    return None


def _said(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
