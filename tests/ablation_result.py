"""A small ablation made by hand, for the tests of its page and its figures."""

from forkpoint.runs.ablation import Ablation, Arm, CurvePoint, StepMean
from forkpoint.runs.results import Estimate


def over(value: float, half: float | None, n: int) -> Estimate:
    """A mean over ``n`` seeds; None: without an interval."""
    low, high = (None, None) if half is None else (value - half, value + half)
    return Estimate(value=value, low=low, high=high, n=n)


def point(step: int, accuracy: Estimate, operations: float) -> CurvePoint:
    return CurvePoint(
        step=step,
        accuracy=accuracy,
        length_mean=41.5 - step,
        truncated_fraction=0.125,
        operations=operations,
    )


EVERYTHING = Arm(
    label="all",
    settings=("training.steps=4", "selection.rule=all"),
    seeds=(0, 1, 2),
    final=(0.5, 0.625, 0.75),
    accuracy=over(0.625, 0.3125, 3),
    curve=(
        point(0, over(0.25, None, 3), 0.0),
        point(2, over(0.5, 0.625, 3), 2e12),
        point(4, over(0.625, 0.3125, 3), 4e12),
    ),
    entropy=(
        StepMean(step=1, value=over(0.25, 0.5, 3)),
        StepMean(step=4, value=over(0.125, 0.0625, 3)),
    ),
    kept_fraction=1.0,
    hours=0.75,
)
# To all: 0.625 - 0.5 and 0.875 - 0.625, the mean of 0.125 and 0.25.
TOP = Arm(
    label="top20",
    settings=("training.steps=4", "selection.keep_fraction=0.2"),
    seeds=(0, 1),
    final=(0.625, 0.875),
    accuracy=over(0.75, 0.0625, 2),
    difference=over(0.1875, 0.25, 2),
    curve=(point(0, over(0.25, None, 2), 0.0), point(4, over(0.75, 0.0625, 2), 3e12)),
    kept_fraction=0.2,
    hours=0.5,
)
ABLATION = Ablation(
    reference="all", variants=("all", "top20", "late"), seeds=(0, 1, 2), arms=(EVERYTHING, TOP)
)
