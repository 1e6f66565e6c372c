"""From the rows of a public layout to questions and right answers.

Copies of one benchmark differ in their columns and in how they write an answer: ``answer`` or
``expected_answer``, ``025`` or ``25.0``, a worked solution that ends in ``#### 42`` or holds a box,
a list, or a list as text.
"""

import ast
import difflib
import re
from collections.abc import Collection
from typing import Any

from forkpoint.errors import DataError
from forkpoint.runs.rows import column_names, short
from forkpoint.verifiers.answers import last_boxed
from forkpoint.verifiers.text import IntegerVerifier

QUESTIONS = ("problem", "Problem", "question", "Question", "prompt")
ANSWERS = ("answer", "Answer", "expected_answer", "final_answer")
SOLUTIONS = ("solution", "Solution", "reference_solution")
"""Known columns, the best first."""

SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d+)")


def find_column(names: Collection[str], given: str | None, known: tuple[str, ...], key: str) -> str:
    """The column to read: the one that is named, or the first known one that is there.

    Args:
        key: the setting that names a column.

    Raises:
        DataError: it is not there; naming those that are.
    """
    if given is None:
        if found := next((name for name in known if name in names), None):
            return found
        raise DataError(
            f"no column {' or '.join(map(repr, known))}; there are {column_names(list(names))}: "
            f"name the one to read by {key}"
        )
    if given in names:
        return given
    near = difflib.get_close_matches(given, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(f"no column {given!r} ({key}); there are {column_names(list(names))}{hint}")


def question_of(value: Any) -> str:
    """A question as text.

    Raises:
        DataError: it is none.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"the question is {short(value, 80)}; expected text")
    return value.strip()


def gold_of(value: Any, verifier: str, *, worked: bool) -> str:
    """The right answer as its verifier reads it.

    Args:
        worked: it is a worked solution, whose last box counts.

    Raises:
        DataError: there is none, or the verifier cannot compare with it.
    """
    answers = [_end_of(answer, worked) for answer in _listed(value)]
    gold = ", ".join(answer for answer in answers if answer)
    if not gold:
        what = "no \\boxed{} in the solution" if worked else "expected text or a number"
        raise DataError(f"the answer is {short(value, 80)}: {what}")
    if verifier == "integer" and IntegerVerifier("gold")({"gold": gold}, "") is None:
        raise DataError(f"the answer {short(gold, 80)} is no integer: set verifier = 'math'")
    return gold


def _listed(value: Any) -> list[str]:
    """One answer or several, as stripped text: ``[3, 4]`` and ``"['3', '4']"`` are two."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith(("['", '["')):
            try:
                inner = ast.literal_eval(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return [text]
            return _listed(inner) if isinstance(inner, list) else [text]
        return [text]
    if isinstance(value, list | tuple):
        return [text for one in value for text in _listed(one)]
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return [str(value)] if known else []


def _end_of(answer: str, worked: bool) -> str:
    """What is behind ``####``, or in the last box of a worked solution; ``1.6e7`` as mathematics,
    which is what completions write. Empty if there is nothing."""
    _, mark, end = answer.rpartition("####")
    if worked and not mark:
        end = last_boxed(answer) or ""
    end = end.strip()
    found = SCIENTIFIC.fullmatch(end)
    return f"{found[1]} \\times 10^{{{int(found[2])}}}" if found else end
