"""From finished runs to the comparison of variants, over seeds."""

from collections.abc import Sequence
from statistics import fmean

from forkpoint.ablation.recipe import PlannedRun
from forkpoint.ablation.runs import finished
from forkpoint.evaluation.statistics import t_interval
from forkpoint.runs import RunDirectory, read_metrics
from forkpoint.runs.ablation import Ablation, Arm, CurvePoint
from forkpoint.runs.metrics_log import StepEvaluation
from forkpoint.runs.results import Estimate


def compare(runs: Sequence[PlannedRun], reference: str) -> Ablation:
    """Every variant of which a run is through, in the order of ``runs``.

    Accuracies are means over seeds with Student's interval, which says how much the next seed may
    differ, not how much other problems would. Differences are paired by seed.

    Args:
        reference: the variant that the others are compared with.
    """
    by_variant: dict[str, dict[int, list[StepEvaluation]]] = {}
    of_variant = {run.variant: run for run in runs}
    operations: dict[tuple[str, int], dict[int, float]] = {}
    for run in runs:
        found = finished(run)
        if found is not None:
            by_variant.setdefault(run.variant, {})[run.seed] = found
            operations[run.variant, run.seed] = _operations(run)
    last = {
        v: {s: e[-1].accuracy.value for s, e in found.items()} for v, found in by_variant.items()
    }
    against = last.get(reference, {})
    arms = []
    for variant, found in by_variant.items():
        pairs = [final - against[s] for s, final in last[variant].items() if s in against]
        arms.append(
            Arm(
                label=variant,
                settings=of_variant[variant].settings,
                seeds=tuple(found),
                final=tuple(last[variant].values()),
                accuracy=over_seeds(list(last[variant].values())),
                difference=over_seeds(pairs) if variant != reference and pairs else None,
                curve=_curve(found, {s: operations[variant, s] for s in found}),
            )
        )
    return Ablation(reference=reference if against else None, arms=tuple(arms))


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean with Student's 95 % interval; without one where there is one seed."""
    interval = t_interval(values) if len(values) > 1 else None
    low, high = interval or (None, None)
    return Estimate(value=fmean(values), low=low, high=high, n=len(values))


def _operations(run: PlannedRun) -> dict[int, float]:
    """Step -> operations of all steps up to it."""
    total, found = 0.0, {0: 0.0}
    for line in read_metrics(RunDirectory(run.folder).metrics_jsonl):
        total += line.get("work/flops") or 0.0
        found[int(line["step"] or 0)] = total
    return found


def _curve(
    found: dict[int, list[StepEvaluation]], operations: dict[int, dict[int, float]]
) -> tuple[CurvePoint, ...]:
    """The steps at which every seed was evaluated."""
    by_step = {seed: {one.step: one for one in many} for seed, many in found.items()}
    steps = sorted(set.intersection(*(set(one) for one in by_step.values())))
    points = []
    for step in steps:
        here = [one[step] for one in by_step.values()]
        lengths = [one.length_mean for one in here if one.length_mean is not None]
        points.append(
            CurvePoint(
                step=step,
                accuracy=over_seeds([one.accuracy.value for one in here]),
                length_mean=fmean(lengths) if lengths else None,
                operations=fmean(operations[seed][step] for seed in found),
            )
        )
    return tuple(points)
