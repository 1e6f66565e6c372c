"""reasoning-gym's own verdict on an extracted answer.

Some of its verifiers hand the answer to Python's ``eval``, themselves or through sympy's parser.
That would run whatever the model writes, so here it fails, and such tasks are refused.
"""

import builtins
import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from forkpoint.errors import ConfigError
from forkpoint.verifiers.answers import extract_answer


@dataclass(frozen=True, slots=True)
class GymVerifier:
    """1.0 if reasoning-gym gives the extracted answer full marks, else 0.0.

    Only the extracted answer is scored: reasoning-gym gives partial marks to text around a right
    answer. Partial marks count as wrong (``is_equivalent`` is 0 or 1 in the paper's Eq. 3), and so
    does an answer that its verifier stumbles over: that of prime factors raises on a letter.
    """

    name: str
    parameters: dict[str, Any]
    answer_format: str
    imports: ClassVar = ("reasoning_gym",)

    def __call__(self, columns: Any, text: str) -> float:
        answer = extract_answer(text, self.answer_format)
        if answer is None:
            return 0.0
        dataset = make_dataset(self.name, self.parameters, seed=0)
        return 1.0 if is_right(dataset, answer, columns["entry"]) else 0.0


def is_right(dataset: Any, answer: str, entry: Any) -> bool:
    """Whether an answer gets full marks."""
    return judged(dataset, answer, entry)[0]


def judged(dataset: Any, answer: str, entry: Any) -> tuple[bool, bool]:
    """Whether an answer gets full marks, and whether the verifier tried to run it as a program."""
    with _nothing_run_but(frozenset(_texts(entry))) as tried:
        try:
            right = dataset.score_answer(answer=answer, entry=entry) >= 1.0
        except MemoryError:  # the worker's limit, which is no verdict
            raise
        except Exception:
            right = False
    return right and not tried, bool(tried)


@contextmanager
def _nothing_run_but(trusted: frozenset[str]) -> Iterator[list[str]]:
    """Let Python's ``eval`` and ``exec`` take texts of the problem itself and modules that are
    imported meanwhile, and nothing else: the list gets what else they were given."""
    tried: list[str] = []

    def guarded(run: Any) -> Any:
        def guard(source: Any, *given: Any, **named: Any) -> Any:
            if source in trusted or _importing():
                return run(source, *given, **named)
            tried.append(str(source))
            raise ValueError("a verifier may not run an answer")

        return guard

    before = builtins.eval, builtins.exec
    builtins.eval, builtins.exec = guarded(before[0]), guarded(before[1])
    try:
        yield tried
    finally:
        builtins.eval, builtins.exec = before


def _importing() -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("importlib."):
            return True
        frame = frame.f_back
    return False


def _texts(value: Any) -> Iterator[str]:
    """Every text in an entry."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def make_dataset(name: str, parameters: dict[str, Any], *, seed: int) -> Any:
    """A reasoning-gym data set of one entry.

    Raises:
        ConfigError: reasoning-gym is not installed, or knows no such task or parameter.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise ConfigError(
            "task.type = 'gym' needs reasoning-gym: pip install 'forkpoint[gym]'"
        ) from error
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=1, **parameters)
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"task.name = {name!r} with task.parameters = {parameters}: {error}"
            + _hint(name, parameters)
        ) from error


def _hint(name: str, parameters: dict[str, Any]) -> str:
    """The nearest name of the task, or of a parameter, that reasoning-gym does not know."""
    from reasoning_gym.factory import DATASETS

    known, given = list(DATASETS), [name]
    if name in DATASETS:
        known, given = [f.name for f in fields(DATASETS[name][1])], list(parameters)
    near = [n for g in given if g not in known for n in difflib.get_close_matches(g, known, n=1)]
    return f"; did you mean {', '.join(near)}?" if near else ""
