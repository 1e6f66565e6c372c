"""What is drawn of an ablation: differences to the reference, and curves over seeds."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from forkpoint.figures.axes import Axis, Point, Trace, reach, traces
from forkpoint.figures.estimates import ForestRow, forest
from forkpoint.figures.render import series_colour
from forkpoint.figures.text import ends, minus, number, percent
from forkpoint.runs.ablation import Ablation, Arm, CurvePoint, StepMean
from forkpoint.runs.results import Estimate

if TYPE_CHECKING:
    import altair as alt

LONGEST = 12
"""Characters of a variant's name in a figure; there is room for so many."""
MOST_POINTS = 100
"""Of a line of entropies, evenly spaced."""
SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def differences(found: Ablation) -> "alt.LayerChart | None":
    """A row for each variant: its paired difference to the reference, a dot for each seed."""
    against = found.arm(found.reference)
    pairs = against.final_by_seed if against else {}
    rows = []
    for index, arm in enumerate(found.arms):
        if arm.difference is None:
            continue
        dots = [
            (
                100 * (final - pairs[seed]),
                f"{arm.label}, seed {seed}: {points(final - pairs[seed])}",
            )
            for seed, final in arm.final_by_seed.items()
            if seed in pairs
        ]
        difference = _in_points(arm.difference)
        remark = f"{difference.n} seeds"
        rows.append(ForestRow(short(arm.label), difference, series_colour(index), remark, dots))
    if not rows:
        return None
    last = (f"{row.label} {row.estimate.value:+.1f}" for row in rows)
    return forest(
        rows,
        title="difference in accuracy to the reference, percentage points",
        label=f"Differences in accuracy to {found.reference}, in points: {'; '.join(last)}",
        show=lambda value: f"{value:+.1f}",
    )


def accuracy_by_steps(found: Ablation) -> "alt.LayerChart | None":
    """Mean accuracy over seeds against the steps, with the band of its intervals."""
    return _accuracy(found, "step", lambda point: float(point.step))


def accuracy_by_operations(found: Ablation) -> "alt.LayerChart | None":
    """The same against the operations of training so far; None where they were not counted."""
    most = max((point.operations for arm in found.arms for point in arm.curve), default=0.0)
    if most <= 0:
        return None
    power = math.floor(math.log10(most))
    title = f"operations of training so far, 10{str(power).translate(SUPERSCRIPTS)}"
    return _accuracy(found, title, lambda point: point.operations / 10.0**power)


def entropy_by_steps(found: Ablation) -> "alt.LayerChart | None":
    """Mean entropy of the sampled tokens against the steps, with the band of its intervals."""
    lines = [_some(arm.entropy) for arm in found.arms]
    drawn = [
        Trace(
            series=index,
            name=short(arm.label),
            points=[
                Point(
                    one.step,
                    one.value.value,
                    f"{arm.label}, step {one.step}: {number(one.value.value)} nats"
                    + one.value.ends("{:.3g}"),
                )
                for one in line
            ],
            band=_band([(one.step, one.value) for one in line], math.inf),
        )
        for index, (arm, line) in enumerate(zip(found.arms, lines, strict=True))
        if line
    ]
    return _curves(drawn, "step", "Mean entropy of the sampled tokens", share=False)


def points(difference: float) -> str:
    """A difference of shares in percentage points: ``+3.1``, ``−0.4``."""
    return minus(f"{100 * difference:+.1f}")


def short(label: str) -> str:
    """A variant's name, cut where it would leave its place in a figure."""
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def _in_points(e: Estimate) -> Estimate:
    low, high = e.interval or (None, None)
    return Estimate(
        value=100 * e.value,
        low=None if low is None else 100 * low,
        high=None if high is None else 100 * high,
        n=e.n,
    )


def _some(line: Sequence[StepMean]) -> list[StepMean]:
    """At most about ``MOST_POINTS``, the last one among them."""
    stride = math.ceil(len(line) / MOST_POINTS) or 1
    return [*line[:-1:stride], *line[-1:]]


def _band(
    values: Sequence[tuple[float, Estimate]], most: float
) -> list[tuple[float, float, float]]:
    """The intervals, cut off at 0 and at ``most``: nothing that is measured lies beyond.

    Where only some values have one, the others' has no width; empty if none has.
    """
    if not any(e.interval for _, e in values):
        return []
    ends_of = [(x, *(e.interval or (e.value, e.value))) for x, e in values]
    return [(x, max(low, 0.0), min(high, most)) for x, low, high in ends_of]


def _accuracy(
    found: Ablation, title: str, place: Callable[[CurvePoint], float]
) -> "alt.LayerChart | None":
    def told(arm: Arm, point: CurvePoint) -> str:
        e = point.accuracy
        between = f" {ends(*e.interval)}" if e.interval else ""
        work = f", {number(point.operations)} operations" if point.operations else ""
        return f"{arm.label}, step {point.step}: {percent(e.value)}{between}{work}"

    drawn = [
        Trace(
            series=index,
            name=short(arm.label),
            points=[Point(place(p), p.accuracy.value, told(arm, p)) for p in arm.curve],
            band=_band([(place(p), p.accuracy) for p in arm.curve], 1.0),
            dots=[
                Point(0.0, final, f"{arm.label}, seed {seed}: {percent(final)} at the end")
                for seed, final in arm.final_by_seed.items()
            ],
        )
        for index, arm in enumerate(found.arms)
        if arm.curve
    ]
    return _curves(drawn, title, "Accuracy", share=True)


def _curves(
    drawn: Sequence[Trace], title: str, what: str, *, share: bool
) -> "alt.LayerChart | None":
    """The lines over axes that hold them, their bands and their dots."""
    if not drawn:
        return None
    across = [point.x for trace in drawn for point in trace.points]
    up = [point.y for trace in drawn for point in (*trace.points, *trace.dots)]
    low, high = reach(up + [end for trace in drawn for _, *two in trace.band for end in two])
    show = percent if share else number
    last = (f"{trace.name} {show(trace.points[-1].y)}" for trace in drawn)
    return traces(
        drawn,
        Axis(
            low=min(across),
            high=max(max(across), min(across) + 1),
            title=title,
            whole=title == "step",
        ),
        Axis(low=low, high=high, share=share),
        label=f"{what} against {title}; at the end {'; '.join(last)}",
    )
