"""From finished runs to the comparison of variants, over seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from forkpoint.ablation.recipe import PlannedRun
from forkpoint.ablation.runs import finished
from forkpoint.evaluation.statistics import EXACT, t_interval
from forkpoint.runs import RunDirectory, read_metrics
from forkpoint.runs.ablation import Ablation, Arm, CurvePoint, StepMean
from forkpoint.runs.metrics_log import MetricsLine, StepEvaluation
from forkpoint.runs.results import Estimate


def compare(runs: Sequence[PlannedRun], reference: str) -> Ablation:
    """Every variant of which a run is through, in the order of ``runs``.

    Accuracies are means over seeds with Student's interval, which says how much the next seed may
    differ, not how much other problems would. Differences are paired by seed.

    Args:
        reference: the variant that the others are compared with.
    """
    planned = {run.variant: run for run in runs}
    made: dict[str, dict[int, _Made]] = {variant: {} for variant in planned}
    for run in runs:
        if (evaluations := finished(run)) is not None:
            lines = read_metrics(RunDirectory(run.folder).metrics_jsonl)
            made[run.variant][run.seed] = _Made(evaluations, lines)
    against = made.get(reference, {})
    arms = []
    for variant, by_seed in made.items():
        if not by_seed:
            continue
        pairs = [one.final - against[s].final for s, one in by_seed.items() if s in against]
        found = list(by_seed.values())
        arms.append(
            Arm(
                label=variant,
                settings=planned[variant].settings,
                seeds=tuple(by_seed),
                final=tuple(one.final for one in found),
                accuracy=over_seeds([one.final for one in found]),
                difference=over_seeds(pairs) if variant != reference and pairs else None,
                curve=_curve(found),
                entropy=_over_steps([one.metric("entropy/mean") for one in found]),
                kept_fraction=_mean(one.mean("selection/kept_fraction") for one in found),
                energy_share=_mean(one.mean("selection/energy_share") for one in found),
                hours=_hours(found),
            )
        )
    return Ablation(
        reference=reference if against else None,
        variants=tuple(planned),
        seeds=tuple(dict.fromkeys(run.seed for run in runs)),
        arms=tuple(arms),
    )


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean with Student's 95 % interval; without one where all values are equal, as one is:
    they say nothing of how far others spread, and an interval without width would claim to.
    Shares of P problems and their differences are equal to ``EXACT`` digits, not to the last."""
    exact = [round(value, EXACT) for value in values]
    interval = t_interval(exact) if len(set(exact)) > 1 else None
    low, high = interval or (None, None)
    return Estimate(value=fmean(exact), low=low, high=high, n=len(values))


@dataclass(frozen=True, slots=True)
class _Made:
    """A run that is through."""

    evaluations: list[StepEvaluation]
    lines: list[MetricsLine]

    @property
    def final(self) -> float:
        """The accuracy it ended with."""
        return self.evaluations[-1].accuracy.value

    def metric(self, name: str) -> dict[int, float]:
        """Step -> value, of the steps that have it."""
        return {
            int(line["step"] or 0): value
            for line in self.lines
            if (value := line.get(name)) is not None
        }

    def mean(self, name: str) -> float | None:
        return _mean(self.metric(name).values())

    def operations(self) -> dict[int, float]:
        """Step -> operations of all steps up to it."""
        total, found = 0.0, {0: 0.0}
        for line in self.lines:
            total += line.get("work/flops") or 0.0
            found[int(line["step"] or 0)] = total
        return found


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None if none is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _hours(found: Sequence[_Made]) -> float | None:
    names = ("time/step_s", "time/eval_s")
    seconds = [value for one in found for name in names for value in one.metric(name).values()]
    return sum(seconds) / 3600 if seconds else None


def _common_steps(by_seed: Sequence[Mapping[int, object]]) -> list[int]:
    return sorted(set.intersection(*(set(one) for one in by_seed)))


def _over_steps(by_seed: Sequence[Mapping[int, float]]) -> tuple[StepMean, ...]:
    """The mean over seeds at each step that all of them have."""
    return tuple(
        StepMean(step=step, value=over_seeds([one[step] for one in by_seed]))
        for step in _common_steps(by_seed)
    )


def _curve(found: Sequence[_Made]) -> tuple[CurvePoint, ...]:
    """The steps at which every seed was evaluated."""
    by_seed = [{one.step: one for one in made.evaluations} for made in found]
    operations = [made.operations() for made in found]
    points = []
    for step in _common_steps(by_seed):
        here = [one[step] for one in by_seed]
        points.append(
            CurvePoint(
                step=step,
                accuracy=over_seeds([one.accuracy.value for one in here]),
                length_mean=_mean(one.length_mean for one in here),
                truncated_fraction=_mean(one.truncated_fraction for one in here),
                operations=fmean(one[step] for one in operations),
            )
        )
    return tuple(points)
