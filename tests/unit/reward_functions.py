"""Reward functions under test. Workers are spawned and find them by their import path."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from forkpoint.types import Completion, Problem
from forkpoint.verifiers.text import OverLimitError

NOT_A_FUNCTION = 3


class TwoArgumentsError(Exception):
    """Pickles, but does not unpickle: its constructor takes more than the message."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class WordlessError(Exception):
    """Fails once more when it is asked what happened."""

    def __str__(self) -> str:
        raise SystemExit(0)


class ExitsLater:
    """A reward that ends the process where it is read as a number."""

    def __float__(self) -> float:
        raise SystemExit(0)  # the reward is read


# ---- called by a scorer: (problem, completion) -> float | None -----------------------------------


def length_of_text(problem: Problem, completion: Completion) -> float:
    return float(len(completion.text))


def one(problem: Problem, completion: Completion) -> float:
    return 1.0


def leaves_out_b(problem: Problem, completion: Completion) -> float | None:
    return None if completion.text == "b" else 1.0


def obeys(problem: Problem, completion: Completion) -> Any:
    """Does what the completion says."""
    match completion.text.split():
        case ["hang"]:
            while True:
                pass
        case ["compute"]:  # in C, where no Python signal handler runs
            return float(9**9**9)
        case ["exit", code]:
            os._exit(int(code))
        case ["sys.exit"]:
            sys.exit(0)
        case ["interrupt"]:
            raise KeyboardInterrupt
        case ["raise"]:
            raise ZeroDivisionError("of the verifier")
        case ["unpicklable"]:
            raise TwoArgumentsError(1, 2)
        case ["half", "character"]:
            raise ValueError("\ud83d")  # half a character
        case ["exits", "later"]:
            return ExitsLater()
        case ["over", "limit"]:
            raise OverLimitError("out of time in test 3")
        case ["fails", "wordless"]:
            raise WordlessError
        case ["give", value]:
            return {"None": None, "True": True, "text": "text", "complex": 1j}.get(
                value, float(value) if value[-1] in "0123456789fn" else None
            )
    return None


def pid(problem: Problem, completion: Completion) -> float:
    return float(os.getpid())


def sleeps(problem: Problem, completion: Completion) -> float:
    time.sleep(float(completion.text))
    return 1.0


# ---- with TRL's signature ------------------------------------------------------------------------


def remembers(
    prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
) -> list[float]:
    """1.0 if everything came as TRL passes it for a plain-text prompt."""
    expected = (["3 + 4"], ["7"], [[5, 6, 1]], {"answer": [7], "tags": [["sum", "easy"]]})
    return [float((prompts, completions, completion_ids, columns) == expected)]


def remembers_chat(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """1.0 if prompt and completion came as messages."""
    question = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3 + 4"}]
    answer = [{"role": "assistant", "content": "7"}]
    return [float((prompts, completions) == ([question], [answer]))]


def skips(completions: list[str], **columns: Any) -> list[float | None]:
    return [None for _ in completions]


def gives_a_number(completions: list[str], **columns: Any) -> float:
    return 1.0


def gives_two(completions: list[str], **columns: Any) -> list[float]:
    return [1.0, 1.0]


def takes_no_columns(completions: list[str]) -> list[float]:
    return [1.0]


def overlong(completions: list[str], **columns: Any) -> list[float]:
    """Bears the name of the length penalty."""
    return [0.5]


# ---- that a pool must survive --------------------------------------------------------------------


def notes_pid(problem: Problem, completion: Completion) -> float:
    """Leaves its process id in the folder, then does what the completion says."""
    (Path(problem.columns["folder"]) / str(os.getpid())).touch()
    return obeys(problem, completion)


def starts_a_process(problem: Problem, completion: Completion) -> float:
    """Waits for a process of its own, as one that runs a model's code would."""
    with subprocess.Popen(["sleep", "600"]) as process:
        (Path(problem.columns["folder"]) / str(process.pid)).touch()
    return 1.0


def fills_memory(problem: Problem, completion: Completion) -> float:
    """Takes as many megabytes as the completion says."""
    return float(len(bytearray(int(completion.text) * 1_000_000)) > 0)


class NotThere:
    """A reward that can be sent to a worker but not be read there."""

    def __call__(self, problem: Problem, completion: Completion) -> float:
        return 1.0

    def __reduce__(self) -> Any:
        return _ends_the_worker, ()


def _ends_the_worker() -> None:
    os._exit(1)


def by_the_batch(completions: list[str], **columns: Any) -> list[float | None]:
    """A judge that gives the number of completions in its call; or skips, raises, hangs."""
    if "raise" in completions:
        raise ZeroDivisionError("of the judge")
    while "hang" in completions:
        pass
    if "too many" in completions and len(completions) > 1:
        return [1.0]
    size = float(len(completions))
    return [{"skip": None, "nan": math.nan}.get(text, size) for text in completions]


def columns_of(completions: list[str], a: list[Any], b: list[Any], **columns: Any) -> list[Any]:
    return list(zip(completions, a, b, strict=True))


def fails_in_a_library(completions: list[str], **columns: Any) -> list[float]:
    return [json.loads(text)["score"] for text in completions]


def raises_a_long_text(completions: list[str], **columns: Any) -> list[float]:
    raise ValueError("line\n" * 1000)
