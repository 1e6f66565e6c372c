"""The result of an ablation: variants of a run, each with the same seeds."""

from typing import ClassVar

from forkpoint.runs.results import Estimate, Frozen, Result


class CurvePoint(Frozen):
    """Where the runs of a variant were after so many steps; means over seeds."""

    step: int
    accuracy: Estimate
    length_mean: float | None
    """Tokens per completion, of held-out problems."""
    operations: float
    """Of all steps so far: forward and backward passes of training and the engine's."""


class Arm(Frozen):
    """One variant of an ablation."""

    label: str
    settings: tuple[str, ...] = ()
    """What it sets on top of the recipe."""
    seeds: tuple[int, ...] = ()
    """Of the runs that are finished."""
    final: tuple[float, ...] = ()
    """The accuracy each of them ended with."""
    accuracy: Estimate
    """Their mean, over seeds."""
    difference: Estimate | None = None
    """To the reference, paired by seed; None of the reference itself."""
    curve: tuple[CurvePoint, ...] = ()


class Ablation(Result):
    """Variants that were compared. Made by ``forkpoint ablate``."""

    file: ClassVar[str] = "ablation.json"
    reference: str | None = None
    """The label of the arm that the others are compared with."""
    arms: tuple[Arm, ...]
