"""What a verifier is, and those that need no library: the form of a completion, and the same
integer in its last box (AIME, AMC, GSM8K)."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from forkpoint.verifiers.answers import after_thinking, last_list
from forkpoint.verifiers.spelling import readable

Verifier: TypeAlias = Callable[[Mapping[str, Any], str], float | None]
"""(a problem's columns, a completion's text) -> score; must be picklable: it runs in a process of
its own that can be killed. None leaves the sample out."""

INTEGER = re.compile(
    r"([+-]?)([1-9]\d{0,2}(?:(?:,|\{,\}|,?\\[,!])\d{3})+|\d+)(?:\.0*|(?:,|\{,\})0{1,2})?"
)
"""Sign, digits with or without separators of thousands in LaTeX, a decimal part of zeros. Three
digits after a comma are thousands: ``25,000`` is not 25."""
MOST_DIGITS = 1000
"""Longer numbers are no answers, and Python refuses to read them."""


class OverLimitError(Exception):
    """A verifier's verdict on a completion that used up the time, memory or output it has, as a
    program may: scored as a time-out is (``on_timeout``)."""


def column(columns: Mapping[str, Any], path: str) -> Any:
    """A column's value; dots walk into nested ones (``reward_model.ground_truth``)."""
    value: Any = columns
    for part in path.split("."):
        value = value[part]
    return value


@dataclass(frozen=True, slots=True)
class FormatVerifier:
    """1.0 if the whole completion matches the pattern (dot matches newlines), else 0.0."""

    pattern: str

    def __call__(self, columns: Mapping[str, Any], text: str) -> float:
        return float(re.fullmatch(self.pattern, text, re.DOTALL) is not None)


@dataclass(frozen=True, slots=True)
class IntegerVerifier:
    """1.0 if the last ``\\boxed{}`` is the same integer as the answer (AIME, AMC, GSM8K), else 0.0.

    Boxes that are listed (``answers.last_list``) must all hold it: who answers ``\\boxed{1}`` and
    ``\\boxed{2}`` has not answered a question with one answer.

    Compared as integers: ``025``, ``25`` and ``25.0`` are the same answer. Of a worked solution
    that ends in ``#### 42`` the end counts. None if the answer is no integer.
    """

    answer_column: str

    def __call__(self, columns: Mapping[str, Any], text: str) -> float | None:
        gold = _integer(str(column(columns, self.answer_column)).rsplit("####", 1)[-1])
        if gold is None:
            return None
        return float({_integer(box) for box in last_list(after_thinking(text))} == {gold})

    def answer(self, text: str) -> str | None:
        """What a completion answers: its integer; else what stands in its last boxes, or None."""
        boxes = last_list(after_thinking(text))
        numbers = {_integer(box) for box in boxes}
        only = next(iter(numbers)) if len(numbers) == 1 else None
        return str(only) if only is not None else ", ".join(boxes) or None

    def merged(self, answers: Sequence[str | None]) -> list[str | None]:
        """Equivalent answers as one: integers are already."""
        return list(answers)


def _integer(text: str) -> int | None:
    """Exact, and never by way of a float, to which 2^53 + 1 is 2^53."""
    if len(text) > MOST_DIGITS:
        return None
    found = INTEGER.fullmatch(readable(text.replace("\\$", "").strip().strip("$")))
    return int(found[1] + re.sub(r"\D", "", found[2])) if found else None
