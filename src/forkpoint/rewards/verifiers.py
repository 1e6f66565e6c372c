"""The verifiers that ship: picklable callables ``(columns, text) -> score``."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from forkpoint.rewards.answers import last_boxed

INTEGER = re.compile(r"([+-]?)(\d{1,3}(?:(?:,|\{,\}|,?\\[,!])\d{3})+|\d+)(?:\.0*)?")
"""Sign, digits with or without separators of thousands in LaTeX, a decimal part of zeros."""
MOST_DIGITS = 1000
"""Longer numbers are no answers, and Python refuses to read them."""
UNESCAPED_DOLLAR = re.compile(r"(?<!\\)\$")


def column(columns: Mapping[str, Any], path: str) -> Any:
    """A column's value; dots walk into nested ones (``reward_model.ground_truth``)."""
    value: Any = columns
    for part in path.split("."):
        value = value[part]
    return value


@dataclass(frozen=True, slots=True)
class IntegerVerifier:
    """1.0 if the last ``\\boxed{}`` is the same integer as the answer (AIME, AMC, GSM8K), else 0.0.

    Compared as integers: ``025``, ``25`` and ``25.0`` are the same answer. Of a worked solution
    that ends in ``#### 42`` the end counts. None if the answer is no integer.
    """

    answer_column: str

    def __call__(self, columns: Mapping[str, Any], text: str) -> float | None:
        gold = _integer(str(column(columns, self.answer_column)).rsplit("####", 1)[-1])
        if gold is None:
            return None
        boxed = last_boxed(text.rsplit("</think>", 1)[-1])
        return float(boxed is not None and _integer(boxed) == gold)


@dataclass(frozen=True, slots=True)
class MathVerifier:
    """1.0 if math-verify finds the answer equivalent, else 0.0; None if the gold is unreadable.

    math-verify's own time limits use SIGALRM, which works in no thread but the main one; they are
    off, and the process this runs in is killed instead.
    """

    answer_column: str
    imports: ClassVar = ("math_verify",)

    def __call__(self, columns: Mapping[str, Any], text: str) -> float | None:
        from latex2sympy2_extended import NormalizationConfig
        from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

        logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of the limits being off
        answer = str(column(columns, self.answer_column)).strip()
        delimited = UNESCAPED_DOLLAR.search(answer) or "\\boxed" in answer
        gold = parse(
            answer if delimited else f"${answer}$",
            parsing_timeout=None,  # pyright: ignore[reportArgumentType]
        )
        if not gold:
            return None
        boxed = last_boxed(text.rsplit("</think>", 1)[-1])
        if boxed is None:
            return 0.0
        # One box alone: math-verify joins neighbouring boxes into one number. What it calls
        # malformed operators are arguments without braces, as in \frac12: good LaTeX.
        found = parse(
            f"\\boxed{{{boxed}}}",
            extraction_config=[
                LatexExtractionConfig(
                    boxed_match_priority=0,
                    normalization_config=NormalizationConfig(units=True, malformed_operators=True),
                ),
                ExprExtractionConfig(),
            ],
            extraction_mode="first_match",
            parsing_timeout=None,  # pyright: ignore[reportArgumentType]
        )
        return float(bool(found) and verify(gold, found, timeout_seconds=None))


@dataclass(frozen=True, slots=True)
class FormatVerifier:
    """1.0 if the whole completion matches the pattern (dot matches newlines), else 0.0."""

    pattern: str

    def __call__(self, columns: Mapping[str, Any], text: str) -> float:
        return float(re.fullmatch(self.pattern, text, re.DOTALL) is not None)


def _integer(text: str) -> int | None:
    """Exact, and never by way of a float, to which 2^53 + 1 is 2^53."""
    text = text.replace("\\$", "").strip().strip("$").strip()
    found = INTEGER.fullmatch(text) if len(text) <= MOST_DIGITS else None
    return int(found[1] + re.sub(r"\D", "", found[2])) if found else None
