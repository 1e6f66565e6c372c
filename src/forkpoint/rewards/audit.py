"""An audit of the text verifiers: all of them judge the same answers, and no model is needed."""

import importlib.util
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from forkpoint.config.rewards import ScoringConfig
from forkpoint.errors import ConfigError, DataError
from forkpoint.rewards.build import OfColumns
from forkpoint.rewards.pool import TIMEOUT, Call, RewardFunction, WorkerPool
from forkpoint.rewards.scorer import default_workers
from forkpoint.rewards.worker import Part, Sample
from forkpoint.runs.rows import Row, column_names, read_rows, short
from forkpoint.types import Completion, FinishReason, Problem
from forkpoint.verifiers import IntegerVerifier, MathVerifier, Verifier

Verdict: TypeAlias = Literal["right", "wrong", "unparseable gold", "exception", "hang"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
JUDGED = {"right", "wrong"}
"""The verdicts that say something of the answer; the others say why there is none."""

GOLD = "gold"
TEXT_VERIFIERS: dict[str, Verifier] = {
    "math": MathVerifier(GOLD),
    "integer": IntegerVerifier(GOLD),
}
"""The verifiers that compare a text with a gold answer, by their name in ``[[rewards]]``."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the file: what is right, what was answered, and what the verdict should be."""

    row: int
    """Counted from 1."""
    gold: str | int | float
    answer: str
    expected: Verdict | None


@dataclass(frozen=True, slots=True)
class Judged:
    """A case with what each verifier said of it."""

    case: Case
    by_verifier: Mapping[str, Verdict]
    errors: Mapping[str, str]
    """Verifier -> what it raised, or why it was killed; of exceptions and hangs only."""

    def divided(self) -> bool:
        """Whether one verifier says right and another wrong."""
        return set(self.by_verifier.values()) >= JUDGED

    def unexpected(self, name: str) -> bool:
        """Whether this verifier says anything else than the file expects."""
        return self.case.expected not in (None, self.by_verifier[name])

    def contradicted(self, name: str) -> bool:
        """Whether this verifier says right where the file expects wrong, or the other way round."""
        return self.unexpected(name) and {self.case.expected, self.by_verifier[name]} == JUDGED


def read_cases(path: Path) -> list[Case]:
    """The rows of a JSONL or parquet file with the columns gold, answer and maybe expected.

    Raises:
        DataError: the file or one of its rows cannot be read; the message says which row.
    """
    return [_case(row) for row in read_rows(path)]


def audit(
    cases: Sequence[Case],
    *,
    timeout_s: float,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Judged]:
    """Every verifier's verdict on every case, in the order of the cases.

    The verifiers run in processes of their own. One that takes longer than ``timeout_s`` seconds
    for a case is killed, which is a verdict, too, and the audit goes on.

    Raises:
        ConfigError: math-verify is not installed.
        Interrupted: ``should_stop()`` turned true.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError("an audit needs math_verify: pip install 'forkpoint[math]'")
    functions = [
        RewardFunction(name=name, call=OfColumns(verifier), weight=1.0, timeout_s=timeout_s)
        for name, verifier in TEXT_VERIFIERS.items()
    ]
    samples = [_sample(case) for case in cases]
    calls = [Call(function, (i,)) for function in functions for i in range(len(cases))]
    parts: dict[tuple[int, str], Part] = {}
    pool = WorkerPool(
        workers=default_workers(),
        memory_gb=ScoringConfig().memory_gb,
        imports=MathVerifier.imports,
    )
    try:
        for call, (part,) in pool.results(calls, samples, should_stop):
            parts[call.samples[0], call.function.name] = part
    finally:
        pool.close()
    return [
        Judged(
            case,
            {name: verdict_of(parts[i, name]) for name in TEXT_VERIFIERS},
            {name: error for name in TEXT_VERIFIERS if (error := parts[i, name].error)},
        )
        for i, case in enumerate(cases)
    ]


def verdict_of(part: Part) -> Verdict:
    """What a verifier's part says in words. A full memory is an exception, as Python has it."""
    if part.error is not None:
        return "hang" if part.error.startswith(TIMEOUT) else "exception"
    if part.value is None:
        return "unparseable gold"
    return "right" if part.value >= 1.0 else "wrong"


def summarise(judged: Sequence[Judged], verifier: str, timeout_s: float) -> dict[str, Any]:
    """The counts of an audit.

    Args:
        verifier: whose verdict is a pair's ``verdict``.
        timeout_s: what each hang kept a worker busy before it was killed.

    Returns:
        ``rows``, ``unexpected`` (the verdict is not the expected one), ``disagreements`` (that, or
        two verifiers contradict each other, or one of them the file), and per verifier the number
        of each verdict, of contradictions with the file, and the seconds of its hangs.
    """
    counts = {name: Counter(one.by_verifier[name] for one in judged) for name in TEXT_VERIFIERS}
    return {
        "rows": len(judged),
        "disagreements": sum(disagrees(one, verifier) for one in judged),
        "unexpected": sum(one.unexpected(verifier) for one in judged),
        "by_verifier": {
            name: {verdict: count[verdict] for verdict in VERDICTS}
            | {
                "contradicted": sum(one.contradicted(name) for one in judged),
                "hang_seconds": count["hang"] * timeout_s,
            }
            for name, count in counts.items()
        },
    }


def disagrees(one: Judged, verifier: str) -> bool:
    """Whether a case belongs in the list of disagreements."""
    return one.divided() or one.unexpected(verifier) or any(map(one.contradicted, one.by_verifier))


def _case(row: Row) -> Case:
    for name in (GOLD, "answer"):
        if name not in row.values:
            raise DataError(
                f"{row.place} has no column {name!r}; it has {column_names(row.values)}"
            )
    gold, answer = row.values[GOLD], row.values["answer"]
    if not isinstance(gold, str | int | float) or isinstance(gold, bool) or not _finite(gold):
        raise DataError(f"{row.place}: gold is {short(gold)}; expected text or a number")
    if not isinstance(answer, str):
        raise DataError(f"{row.place}: answer is {short(answer)}; expected the completion's text")
    expected = row.values.get("expected")
    if isinstance(expected, bool):
        expected = "right" if expected else "wrong"
    if expected is not None and expected not in VERDICTS:
        raise DataError(
            f"{row.place}: expected is {short(expected)}; it must be one of "
            f"{', '.join(VERDICTS)}, or true or false, or absent"
        )
    return Case(int(row.place.rpartition(" ")[2]), gold, answer, expected)


def _finite(gold: str | int | float) -> bool:
    return not isinstance(gold, float) or math.isfinite(gold)


def _sample(case: Case) -> Sample:
    completion = Completion(
        token_ids=(),  # pyright: ignore[reportArgumentType]
        logprobs=(),  # pyright: ignore[reportArgumentType]
        entropies=None,
        finish_reason=FinishReason.STOP,
        text=case.answer,
    )
    return Problem(id=str(case.row), prompt="", columns={GOLD: case.gold}), completion
