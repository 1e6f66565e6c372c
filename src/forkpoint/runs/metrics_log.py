"""metrics.jsonl: one line a step, the source of truth of a run's curves."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from forkpoint.errors import RunError
from forkpoint.runs.atomic import write_text
from forkpoint.runs.results import Estimate

MetricsLine: TypeAlias = dict[str, float | None]
"""A step's numbers by name; None: it was not finite."""


class MetricsLog:
    """Appends lines; a number that is not finite becomes null."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, line: Mapping[str, float]) -> None:
        """Write one line and hand it to the kernel, so that a killed process loses none.

        Raises:
            RunError: the disk is full.
        """
        text = json.dumps({k: _plain(v) for k, v in line.items()}, allow_nan=False)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error}") from error

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps, and a last line that was cut off in the middle."""
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if (s := _step_of(line)) is not None and s <= step]
        write_text(self._path, "".join(line + "\n" for line in kept))


def read_metrics(path: Path) -> list[MetricsLine]:
    """The lines of a metrics.jsonl in order; a last line cut off in the middle is left out.

    Raises:
        RunError: no such file, or a line before the last is not JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append({name: _number(value) for name, value in json.loads(line).items()})
        except (ValueError, AttributeError) as error:
            if number == len(lines):
                break  # the writer was killed, or is writing it just now
            raise RunError(f"{path}, line {number} is not JSON: {error}") from error
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvaluation:
    """What a line says of held-out problems."""

    step: int
    accuracy: Estimate
    length_mean: float | None
    """Tokens per completion."""
    truncated_fraction: float | None
    """Of the completions, those cut by the token budget; None in older runs."""


def evaluations(lines: Iterable[MetricsLine]) -> list[StepEvaluation]:
    """The evaluations of a run, in their order."""
    found = []
    for line in lines:
        step, value = line.get("step"), line.get("eval/accuracy")
        if step is None or value is None:
            continue
        accuracy = Estimate(
            value=value,
            low=line.get("eval/accuracy_low"),
            high=line.get("eval/accuracy_high"),
            n=int(line.get("eval/problems") or 0),
        )
        found.append(
            StepEvaluation(
                step=int(step),
                accuracy=accuracy,
                length_mean=line.get("eval/length_mean"),
                truncated_fraction=line.get("eval/truncated_fraction"),
            )
        )
    return found


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
