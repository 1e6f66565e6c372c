"""The result of an ablation: variants of a run, each with the same seeds."""

from typing import ClassVar

from pydantic import model_validator

from forkpoint.runs.results import Estimate, Frozen, Result


class CurvePoint(Frozen):
    """Where the runs of a variant were after so many steps; means over seeds."""

    step: int
    accuracy: Estimate
    length_mean: float | None
    """Tokens per completion, of held-out problems."""
    truncated_fraction: float | None = None
    """Of these completions, those cut by the token budget."""
    operations: float
    """Of all steps so far: the policy's passes in training, without sampling and evaluations."""


class StepMean(Frozen):
    """A metric of one training step, over seeds."""

    step: int
    value: Estimate


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
    """The steps at which every seed was evaluated."""
    entropy: tuple[StepMean, ...] = ()
    """Mean entropy in nats of the tokens that were sampled in a step, where every seed has it."""
    kept_fraction: float | None = None
    """Of the tokens that could be selected, those that were; mean over steps, then over seeds."""
    energy_share: float | None = None
    """``selection/energy_share`` likewise; None where the runs have no such metric."""
    hours: float | None = None
    """That the steps and evaluations of all its runs took, added up."""

    @model_validator(mode="after")
    def _check(self) -> "Arm":
        if len(self.seeds) != len(self.final):
            raise ValueError(f"{len(self.seeds)} seeds and {len(self.final)} accuracies")
        return self

    @property
    def final_by_seed(self) -> dict[int, float]:
        """Seed -> the accuracy its run ended with."""
        return dict(zip(self.seeds, self.final, strict=True))


class Ablation(Result):
    """Variants that were compared. Made by ``forkpoint ablate``."""

    file: ClassVar[str] = "ablation.json"
    reference: str | None = None
    """The label of the arm that the others are compared with; None if no run of it is finished."""
    variants: tuple[str, ...] = ()
    """All that were planned; of those that are not among ``arms`` no run is finished."""
    seeds: tuple[int, ...] = ()
    """Planned, of each variant."""
    arms: tuple[Arm, ...]

    def arm(self, label: str | None) -> Arm | None:
        """The arm of that label; None if there is none."""
        return next((arm for arm in self.arms if arm.label == label), None)
