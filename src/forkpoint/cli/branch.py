"""``forkpoint branch``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from forkpoint.cli.options import Overrides, note, title
from forkpoint.errors import Interrupted

if TYPE_CHECKING:
    from rich.console import Console

    from forkpoint.runs.results import Branching, Estimate


ROUNDING = 1e-12


def branch(
    *,
    run_dir: Path,
    budget_tokens: int,
    model: str | None = None,
    task: str | None = None,
    recipe: Path | None = None,
    problems: int = 100,
    samples: int = 2,
    alternatives: int = 1,
    continuations: int = 8,
    keep_fraction: float = 0.2,
    set_: Overrides = None,
) -> int:
    """Measure whether high-entropy positions are decisions: replace the token, finish the answer.

    In each sampled answer one position of high and one of low entropy is drawn; from the kept token
    and from its alternatives the answer is finished several times, and the rewards are compared.
    The same command again goes on where it was stopped, with a larger budget too.

    Parameters
    ----------
    run_dir
        Where the analysis goes; a run's folder, or a new one.
    budget_tokens
        Most tokens to sample, the first answers included; never exceeded.
    model
        ``lab``, a folder (a run's checkpoint is one) or a hub id.
    task
        ``lab``, or the name of a reasoning-gym task such as chain_sum.
    recipe
        A TOML file for the task, its rewards and how to sample; without one the laboratory.
    problems
        How many held-out problems.
    samples
        First answers per problem; each gives one pair of positions.
    alternatives
        Tokens tried besides the kept one, the most likely first.
    continuations
        Endings drawn from each token, 2 at least.
    keep_fraction
        The share of tokens of highest entropy that counts as high.
    """
    from forkpoint.analysis.branching import BranchSettings, measure_branching
    from forkpoint.cli.analyze import analysis_config
    from forkpoint.cli.console import SafeConsole
    from forkpoint.training.stop import StopFlag

    config = analysis_config(recipe, model, task, problems, samples, set_ or [])
    settings = BranchSettings(
        budget_tokens=budget_tokens,
        alternatives=alternatives,
        continuations=continuations,
        keep_fraction=keep_fraction,
    )
    console = SafeConsole()
    with StopFlag() as stop:
        try:
            summary = measure_branching(
                config, settings, run_dir, stop, lambda text: note(console, text)
            )
        except Interrupted as stopped:
            if stop.signal is None:
                raise
            note(console, f"{stopped}; what was measured is kept, the same command goes on")
            return stop.exit_code
    show(console, summary, run_dir)
    return 0


def show(console: "Console", found: "Branching", root: Path) -> None:
    """The gaps of both kinds of position."""
    title(console, root)
    for line in (
        f"{found.high.positions} of {found.pairs_possible} pairs of positions measured, in answers "
        f"to {found.prompts} prompts; {found.spent_tokens:,} of {found.budget_tokens:,} tokens "
        "spent",
        "how far the expected reward moves, 95 % intervals over prompts:",
    ):
        console.print(line, highlight=False, markup=False)
    console.print(_table(found))


def _table(found: "Branching") -> Any:
    from rich import box
    from rich.table import Table

    high, low = found.high, found.low
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("measure", "entropy", "mean", "95 % interval"):
        table.add_column(name, justify="right" if name == "mean" else "left", no_wrap=True)
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
        table.add_row(name, kind, *_cells(estimate))
    return table


def _cells(estimate: "Estimate | None") -> tuple[str, str]:
    if estimate is None:
        return "-", ""
    ends = estimate.interval
    return _number(estimate.value), "" if ends is None else f"[{', '.join(map(_number, ends))}]"


def _number(value: float) -> str:
    """Three figures; what is nothing but rounding is 0."""
    return f"{value:.3g}" if abs(value) > ROUNDING else "0"
