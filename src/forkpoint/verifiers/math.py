"""Mathematical equivalence by math-verify."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from forkpoint.verifiers.answers import after_thinking, last_list
from forkpoint.verifiers.spelling import readable
from forkpoint.verifiers.text import column

DECIMAL_COMMA = re.compile(
    r"(?!.*\\[lr]brac[ek])([^\d,;.()\[\]{}|]*\d+)(?:,|\{,\})(\d+)([^\d,;.]*)"
)
"""One number with one comma in it, maybe with a name or a sign before it and a unit after it."""
FULL_STOP = re.compile(r"(?:(?<=\d)|(?<=^[A-Z]))\.$")
THOUSANDS = re.compile(r"[1-9]\d{0,2}")
"""The digits before a comma that separates thousands, if three follow it."""
DELIMITED = re.compile(r"(?<!\\)\$|\\boxed|^\\[\[(]")
"""A gold answer that says itself where its mathematics is."""
INTERVAL = re.compile(r"[\[\]]|\\infty")
"""A gold answer that can be no point: ``(1,2)`` can be."""
BETWEEN = "\0"
"""Between the boxes of a list; no mathematics has it."""


@dataclass(frozen=True, slots=True)
class MathVerifier:
    """1.0 if math-verify finds the answer equivalent, else 0.0; None if the gold is unreadable.

    The answer is the last ``\\boxed{}``, or a list of boxes (``answers.last_list``), which is the
    same answer as one box with all of them: a gold of one value is not met by several. A comma in
    the answer may be decimal (``0,5``) unless it separates thousands; the gold is read with points.

    math-verify's own time limits use SIGALRM, which works in no thread but the main one; they are
    off, and the process this runs in is killed instead.
    """

    answer_column: str
    imports: ClassVar = ("math_verify",)

    def __call__(self, columns: Mapping[str, Any], text: str) -> float | None:
        from math_verify import parse, verify

        logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of the limits being off
        value = column(columns, self.answer_column)
        if value is None or isinstance(value, bool) or value != value:  # NaN, as tables have it
            return None
        answer = readable(str(value))
        gold = parse(
            answer if DELIMITED.search(answer) else f"${answer}$",
            parsing_timeout=None,  # pyright: ignore[reportArgumentType]
        )
        if not gold:
            return None
        found = _readings(last_list(after_thinking(text)))
        return float(
            bool(found)
            and verify(
                _complex(gold),
                found,
                allow_set_relation_comp=INTERVAL.search(answer) is not None,
                timeout_seconds=None,
            )
        )

    def answer(self, text: str) -> str | None:
        """What a completion answers: its last box, or its list of boxes, as text; None without."""
        return BETWEEN.join(last_list(after_thinking(text))) or None

    def merged(self, answers: Sequence[str | None]) -> list[str | None]:
        """Equivalent answers as one: each as the first before it that math-verify finds equal to
        it, whichever of the two it takes for the gold."""
        from math_verify import verify

        logging.getLogger("math_verify").setLevel(logging.ERROR)
        firsts: dict[str, list[Any]] = {}
        first_of: dict[str, str] = {}
        for answer in dict.fromkeys(a for a in answers if a is not None):
            found = _readings(answer.split(BETWEEN))
            equal = (
                first
                for first, other in firsts.items()
                if verify(other, found, timeout_seconds=None)
                or verify(found, other, timeout_seconds=None)
            )
            first_of[answer] = next(equal, answer)
            firsts.setdefault(first_of[answer], found)
        return [None if answer is None else first_of[answer] for answer in answers]


def with_point(number: str) -> str:
    """The answer with its decimal comma as a point; unchanged if it is not one number, or one whose
    comma separates thousands (``1,234``)."""
    found = DECIMAL_COMMA.fullmatch(number)
    if found is None:
        return number
    digits = re.sub(r"\D", "", found[1])
    if len(found[2]) == 3 and THOUSANDS.fullmatch(digits):
        return number
    return f"{found[1]}.{found[2]}{found[3]}"


def _readings(contents: Sequence[str]) -> list[Any]:
    """What the boxes may mean: as they stand, and with a decimal comma as a point."""
    with_points = [with_point(content) for content in contents]
    found = [*_read(contents), *(_read(with_points) if with_points != list(contents) else ())]
    return _complex(found)


def _read(contents: Sequence[str]) -> list[Any]:
    """What math-verify reads in the boxes: the value with its text, or the set of their values."""
    values = [_read_one(content) for content in contents]
    if len(values) < 2:
        return values[0] if values else []
    from latex2sympy2_extended.sets import FiniteSet

    members: list[Any] = []
    for value in values:
        if not value or isinstance(value[0], str):  # it cannot be read as mathematics
            return []
        members += value[0].args if isinstance(value[0], FiniteSet) else [value[0]]
    return [FiniteSet(*members)]


def _read_one(content: str) -> list[Any]:
    """One box alone: math-verify joins neighbouring boxes into one number. What it calls malformed
    operators are arguments without braces, as in ``\\frac12``: good LaTeX."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    latex = LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(units=True, malformed_operators=True),
    )
    content = FULL_STOP.sub("", readable(content))
    return parse(
        f"\\boxed{{{content}}}",
        extraction_config=[latex, ExprExtractionConfig()],
        extraction_mode="first_match",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]
    )


def _complex(values: Sequence[Any]) -> list[Any]:
    """The values with the imaginary unit for i, which math-verify reads as a name; where i is one,
    it stands for the same in gold and answer."""
    return [_with_unit(value) for value in values]


def _with_unit(value: Any) -> Any:
    named_i = [symbol for symbol in getattr(value, "free_symbols", ()) if symbol.name == "i"]
    try:
        return value.subs(dict.fromkeys(named_i, "I")) if named_i else value
    except TypeError:  # i < 5: it is a name
        return value
