"""``forkpoint dynamics``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from forkpoint.cli.options import Overrides, note, title
from forkpoint.cli.terminal import visible
from forkpoint.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from forkpoint.analysis.dynamics import DynamicsJob
    from forkpoint.runs.results import CheckpointEntropy, Dynamics, EntropyChange

ENOUGH = 3
"""Checkpoints besides the base that make a curve."""


def dynamics(
    run: Path | None = None,
    *,
    base: str | None = None,
    checkpoints: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    task: str | None = None,
    rollouts: Annotated[Path | None, Parameter(help="Completions that exist already.")] = None,
    recipe: Path | None = None,
    problems: Annotated[int | None, Parameter(help="How many held-out problems.")] = None,
    samples: Annotated[int | None, Parameter(help="Completions per problem.")] = None,
    keep_fraction: float = 0.2,
    run_dir: Path | None = None,
    set_: Overrides = None,
) -> int:
    """Follow the entropies of the same tokens from the base through every checkpoint.

    Either of a finished run, or of the models named by --base and --checkpoints. The completions
    are sampled from the last one. The same command again goes on where it was stopped.

    Parameters
    ----------
    run
        A run's folder: its model is the base, checkpoints/step_* are the checkpoints.
    base
        ``lab``, a folder or a hub id; for models that no run of forkpoint made.
    checkpoints
        Folders or hub ids, in the order of training, the final policy last.
    task
        ``lab``, or the name of a reasoning-gym task such as chain_sum; with --base.
    rollouts
        Score these instead of sampling: a file or a folder as forkpoint analyze reads it, such as
        RUN/analysis/completions.
    recipe
        A TOML file for the task and how to sample; with --base.
    keep_fraction
        The share of tokens of highest entropy whose overlap is measured.
    run_dir
        Where the analysis goes; default RUN.
    """
    from forkpoint.analysis.dynamics import measure_dynamics
    from forkpoint.cli.console import SafeConsole
    from forkpoint.training.stop import StopFlag

    if rollouts is not None and (samples is not None or problems is not None or task is not None):
        raise ConfigError("--rollouts are completions already: no --task, --problems, --samples")
    root = run_dir or run
    if root is None:
        raise ConfigError("name a run, or --base, --checkpoints and --run-dir")
    if run is not None:
        if base is not None or checkpoints or task is not None or recipe is not None:
            raise ConfigError(f"{run} says which models and task: no --base, --checkpoints, ..")
        job = _job_of_run(run, rollouts, problems, samples, keep_fraction, set_ or [])
    else:
        config = (recipe, base, task, problems, samples, set_ or [])
        job = _job_of_models(checkpoints or [], rollouts, keep_fraction, *config)
    console = SafeConsole()
    with StopFlag() as stop:
        try:
            summary = measure_dynamics(job, root, stop, lambda text: note(console, text))
        except Interrupted as stopped:
            if stop.signal is None:
                raise
            note(console, f"{stopped}; what was finished is kept, the same command goes on")
            return stop.exit_code
    show(console, summary, root)
    return 0


def _job_of_run(
    run: Path,
    rollouts: Path | None,
    problems: int | None,
    samples: int | None,
    keep_fraction: float,
    overrides: list[str],
) -> "DynamicsJob":
    from forkpoint.analysis.checkpoints import checkpoints_of_run
    from forkpoint.analysis.dynamics import DynamicsJob
    from forkpoint.cli.analyze import PROBLEMS, SAMPLES, analysis_config
    from forkpoint.runs.directory import check_schema

    check_schema(run)  # before its configuration, which may be another version's too
    # not as many as the run evaluated on
    problems = PROBLEMS if problems is None else problems
    samples = SAMPLES if samples is None else samples
    config = analysis_config(run / "config.json", None, None, problems, samples, overrides)
    return DynamicsJob(
        config=config,
        checkpoints=checkpoints_of_run(run, config.model.path),
        rollouts=rollouts,
        keep_fraction=keep_fraction,
    )


def _job_of_models(
    checkpoints: list[str],
    rollouts: Path | None,
    keep_fraction: float,
    recipe: Path | None,
    base: str | None,
    task: str | None,
    problems: int | None,
    samples: int | None,
    overrides: list[str],
) -> "DynamicsJob":
    from forkpoint.analysis.checkpoints import named_checkpoints
    from forkpoint.analysis.dynamics import DynamicsJob
    from forkpoint.cli.analyze import analysis_config

    if base is None or not checkpoints:
        raise ConfigError("without a run, name the models: --base MODEL --checkpoints MODEL ..")
    return DynamicsJob(
        config=analysis_config(recipe, base, task, problems, samples, overrides),
        checkpoints=named_checkpoints(base, checkpoints),
        rollouts=rollouts,
        keep_fraction=keep_fraction,
    )


# ---- the table on a terminal --------------------------------------------------------------------


def show(console: "Console", found: "Dynamics", root: Path) -> None:
    """The paper's Table 1, what Fig. 4 shows, and how to keep more checkpoints."""
    from forkpoint.analysis.checkpoints import KEEP_MORE

    keep = 100 * found.keep_fraction
    title(console, root)
    for line in (
        f"{found.tokens:,} tokens of {found.completions:,} completions to {found.prompts:,} "
        "prompts",
        found.source,
        f"overlap of the top {keep:g} % positions, 95 % intervals over prompts "
        f"(chance: {keep:g} %)",
    ):
        console.print(line, highlight=False, markup=False)
    console.print(_table(found.checkpoints))
    for line in _changes(found.change_by_bin):
        console.print(line, highlight=False, markup=False)
    others = len(found.checkpoints) - 1
    if others < ENOUGH:
        note(console, f"{others} checkpoints besides the base; a run keeps more with {KEEP_MORE}")


def _table(checkpoints: "Sequence[CheckpointEntropy]") -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("checkpoint", no_wrap=True)
    for name in ("step", "with base", "with final", "mean H"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in checkpoints:
        table.add_row(
            Text(visible(one.name)),
            "-" if one.step is None else str(one.step),
            "-" if one.overlap_with_base is None else one.overlap_with_base.percent(),
            "-" if one.overlap_with_final is None else one.overlap_with_final.percent(),
            f"{one.mean_entropy.value:.4f}",
        )
    return table


def _changes(bins: "Sequence[EntropyChange]") -> list[str]:
    """The lowest, the middle and the highest bin of base entropy."""
    lines = ["mean change of entropy, final minus base, by percentile of base entropy:"]
    for number in sorted({0, len(bins) // 2, len(bins) - 1}):
        b = bins[number]
        lines.append(
            f"  {b.from_percentile:3g} to {b.to_percentile:3g} %: {b.change.value:+.5f} nats"
            f"{b.change.ends('{:+.5f}')}"
        )
    return lines
