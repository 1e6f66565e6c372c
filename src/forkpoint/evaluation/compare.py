"""Two evaluations of the same problems, compared problem by problem.

Problems differ far more from each other than two models do on one of them, so the difference of two
accuracies says little and the mean of the differences much.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from forkpoint.errors import RunError
from forkpoint.evaluation.metrics import sampling_error
from forkpoint.evaluation.statistics import paired_difference
from forkpoint.runs.evaluation import Benchmarks, Comparison, Difference, Evaluation, Measured
from forkpoint.runs.results import find_result

SETTINGS = ("samples", "temperature", "max_new_tokens", "verifier", "prompt", "chat")
"""What must be equal; the problems must, too."""
MOST_NAMED = 5
"""Problems in a message."""
SEED = 20_000
"""Of the intervals' bootstrap."""


def compare(first: Path, second: Path) -> Comparison:
    """Compare what two run directories hold: each benchmark that both have, and held-out problems.

    Raises:
        RunError: a folder holds no evaluation, they have none in common, or problems or settings
            differ: naming what.
    """
    (model_a, sets_a), (model_b, sets_b) = _read(first), _read(second)
    shared = [name for name in sets_a if name in sets_b]
    if not shared:
        raise RunError(
            f"nothing to compare: {first} has {', '.join(sets_a)}, {second} has {', '.join(sets_b)}"
        )
    for name in shared:
        _check_same(
            f"{first} and {second} cannot be compared on {name}", sets_a[name], sets_b[name]
        )
    return Comparison(
        first=str(first),
        second=str(second),
        first_model=model_a,
        second_model=model_b,
        differences=tuple(difference(name, sets_a[name], sets_b[name]) for name in shared),
    )


def difference(name: str, a: Measured, b: Measured) -> Difference:
    """b - a, by problem."""
    shares_a, shares_b = (
        [sum(problem.right) / len(problem.right) for problem in one.problems] for one in (a, b)
    )
    errors = [sampling_error([problem.right for problem in one.problems]) for one in (a, b)]
    return Difference(
        name=name,
        samples=a.samples,
        first=a.accuracy.value,
        second=b.accuracy.value,
        difference=paired_difference(shares_b, shares_a, seed=SEED),
        sampling_error=None
        if None in errors
        else math.hypot(*(e for e in errors if e is not None)),
    )


def _read(root: Path) -> tuple[str, Mapping[str, Measured]]:
    """The model, and what was measured of it by name."""
    benchmarks, evaluation = find_result(root, Benchmarks), find_result(root, Evaluation)
    found: dict[str, Measured] = {}
    if evaluation is not None:
        found[evaluation.task] = evaluation
    if benchmarks is not None:
        found |= {one.name: one for one in benchmarks.benchmarks}
    if not found:
        raise RunError(f"{root} holds no evaluation: make one with forkpoint eval --run-dir {root}")
    if old := [name for name, one in found.items() if not one.problems]:
        raise RunError(
            f"{root}: the evaluation on {old[0]} was made by an earlier version, without the "
            "verdicts of its problems: measure it again"
        )
    models = {one.model for one in (benchmarks, evaluation) if one is not None}
    if len(models) > 1:
        raise RunError(f"{root} holds evaluations of several models: {', '.join(sorted(models))}")
    return models.pop(), found


def _check_same(what: str, a: Measured, b: Measured) -> None:
    faults = [
        f"{key}: {old!r} and {new!r}"
        for key in SETTINGS
        if (old := getattr(a, key, None)) != (new := getattr(b, key, None))
    ]
    if not faults and len(a.problems) != len(b.problems):
        faults = [f"{len(a.problems)} problems and {len(b.problems)}"]
    if not faults:
        pairs = zip(a.problems, b.problems, strict=True)
        other = [one.id for one, two in pairs if one.digest != two.digest]
        more = f" and {len(other) - MOST_NAMED} more" if len(other) > MOST_NAMED else ""
        if other:
            faults = [f"other problems or answers: {', '.join(other[:MOST_NAMED])}{more}"]
    if faults:
        raise RunError(f"{what}: {'; '.join(faults)}")
