"""``forkpoint branch``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter

from forkpoint.cli.options import Recipe, SampledModel
from forkpoint.cli.terminal import SafeConsole, table

if TYPE_CHECKING:
    from forkpoint.runs.results import Branching, Estimate

PROBLEMS, SAMPLES = 100, 2
"""Without --problems and --samples; each sample gives one pair of positions."""

ROUNDING = 1e-12


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Measured:
    """How much is sampled, and which positions count as high."""

    budget_tokens: int
    """Most tokens to sample, the first answers included; never exceeded."""
    alternatives: int = 1
    """Tokens tried besides the kept one, the most likely first."""
    continuations: int = 8
    """Endings drawn from each token, 2 at least."""
    keep_fraction: float = 0.2
    """The share of tokens of highest entropy that counts as high."""


def branch(
    *,
    run_dir: Path,
    measured: Measured,
    recipe: Recipe = None,
    sampled: SampledModel = SampledModel(),  # noqa: B008
) -> int:
    """Measure whether high-entropy positions are decisions: replace the token, finish the answer.

    In each sampled answer one position of high and one of low entropy is drawn; from the kept token
    and from its alternatives the answer is finished several times, and the rewards are compared.
    The same command again goes on where it was stopped, with a larger budget too.

    Parameters
    ----------
    run_dir
        Where the analysis goes; a run's folder, or a new one.
    """
    from forkpoint.analysis.branching import BranchSettings, measure_branching

    config = sampled.config(recipe, sampled.model, problems=PROBLEMS, samples=SAMPLES)
    settings = BranchSettings(**vars(measured))
    console = SafeConsole()
    with console.stoppable("what was measured is kept, the same command goes on") as stop:
        found = measure_branching(config, settings, run_dir, stop, console.note)
    show(console, found, run_dir)
    return 0


def show(console: SafeConsole, found: "Branching", root: Path) -> None:
    """The gaps of both kinds of position."""
    console.title(root)
    console.say(
        f"{found.high.positions} of {found.pairs_possible} pairs of positions measured, in answers "
        f"to {found.prompts} prompts; {found.spent_tokens:,} of {found.budget_tokens:,} tokens "
        "spent",
        "how far the expected reward moves, 95 % intervals over prompts:",
    )
    interval = "95 % interval"
    measures = table(
        *("measure", "entropy", "mean", interval), left=("measure", "entropy", interval)
    )
    high, low = found.high, found.low
    for name, kind, estimate in (
        ("squared gap", "high", high.squared_gap),
        ("", "low", low.squared_gap),
        ("", "high - low", found.difference),
        ("resampled squared gap", "high", high.resampled_squared_gap),
        ("", "low", low.resampled_squared_gap),
        ("", "high - low", found.resampled_difference),
        ("|gap|, biased upwards", "high", high.gap),
        ("", "low", low.gap),
    ):
        measures.add_row(name, kind, *_cells(estimate))
    console.print(measures)


def _cells(estimate: "Estimate | None") -> tuple[str, str]:
    if estimate is None:
        return "-", ""
    ends = estimate.interval
    return _number(estimate.value), "" if ends is None else f"[{', '.join(map(_number, ends))}]"


def _number(value: float) -> str:
    """Three figures; what is nothing but rounding is 0."""
    return f"{value:.3g}" if abs(value) > ROUNDING else "0"
