"""The verifiers that ship: picklable callables ``(columns, text) -> score``."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forkpoint.rewards.answers import last_boxed


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

    def __call__(self, columns: Mapping[str, Any], text: str) -> float | None:
        from latex2sympy2_extended import NormalizationConfig
        from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

        answer = str(column(columns, self.answer_column)).strip()
        gold = parse(
            answer if "$" in answer or "\\boxed" in answer else f"${answer}$",
            parsing_timeout=None,  # pyright: ignore[reportArgumentType]
        )
        if not gold:
            return None
        boxed = last_boxed(text.rsplit("</think>", 1)[-1])
        if boxed is None:
            return 0.0
        # One box alone: math-verify joins neighbouring boxes into one number.
        found = parse(
            f"\\boxed{{{boxed}}}",
            extraction_config=[
                LatexExtractionConfig(
                    boxed_match_priority=0, normalization_config=NormalizationConfig(units=True)
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
    try:
        value = float(text.strip().strip("$").replace(",", "").replace("\\,", ""))
    except ValueError:
        return None
    return int(value) if value.is_integer() else None
