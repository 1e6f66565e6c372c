"""``forkpoint dynamics``."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.text import Text

from forkpoint.cli.options import PROBLEMS, SAMPLES, HeldOut, Recipe
from forkpoint.cli.terminal import SafeConsole, table, visible
from forkpoint.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forkpoint.analysis.checkpoints import Checkpoint
    from forkpoint.config import RunConfig
    from forkpoint.runs.results import Dynamics

ENOUGH = 3
"""Checkpoints besides the base that make a curve."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Named:
    """Models that no run of forkpoint made, and their recipe."""

    base: str | None = None
    """``lab:walk``, a folder or a hub id; for models that no run of forkpoint made."""
    checkpoints: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None
    """Folders or hub ids, in the order of training, the final policy last."""
    recipe: Recipe = None


def dynamics(
    run: Path | None = None,
    *,
    named: Named = Named(),
    held_out: HeldOut = HeldOut(),  # noqa: B008
    rollouts: Path | None = None,
    keep_fraction: float = 0.2,
    run_dir: Path | None = None,
) -> int:
    """Follow the entropies of the same tokens from the base through every checkpoint.

    Either of a finished run, or of the models named by --base and --checkpoints, whose task is
    given by --recipe or --task. The completions are sampled from the last one. The same command
    again goes on where it was stopped.

    Parameters
    ----------
    run
        A run's folder: its model is the base, checkpoints/step_* are the checkpoints.
    rollouts
        Score these instead of sampling: a file or a folder as forkpoint analyze reads it, such as
        RUN/completions/analysis.
    keep_fraction
        The share of tokens of highest entropy whose overlap is measured.
    run_dir
        Where the analysis goes; default RUN.
    """
    from forkpoint.analysis.dynamics import DynamicsJob, measure_dynamics

    if rollouts is not None and held_out.chosen:
        raise ConfigError("--rollouts are completions already: no --task, --problems, --samples")
    root = run_dir or run
    if root is None:
        raise ConfigError("name a run, or --base, --checkpoints and --run-dir")
    config, followed = _of_models(named, held_out) if run is None else _of_run(run, named, held_out)
    job = DynamicsJob(
        config=config, checkpoints=followed, rollouts=rollouts, keep_fraction=keep_fraction
    )
    console = SafeConsole()
    with console.stoppable("what was finished is kept, the same command goes on") as stop:
        found = measure_dynamics(job, root, stop, console.note)
    show(console, found, root)
    return 0


def _of_run(run: Path, named: Named, held_out: HeldOut) -> "tuple[RunConfig, Sequence[Checkpoint]]":
    """The configuration and the checkpoints of a finished run."""
    from forkpoint.analysis.checkpoints import checkpoints_of_run
    from forkpoint.runs.directory import check_schema

    if named != Named() or held_out.task is not None:
        raise ConfigError(f"{run} says which models and task: no --base, --checkpoints, ..")
    check_schema(run)  # before its configuration, which may be another version's too
    # By default not as many as the run evaluated on.
    problems = PROBLEMS if held_out.problems is None else held_out.problems
    samples = SAMPLES if held_out.samples is None else held_out.samples
    chosen = replace(held_out, problems=problems, samples=samples)
    config = chosen.config(run / "config.json")
    return config, checkpoints_of_run(run, config.model.path)


def _of_models(named: Named, held_out: HeldOut) -> "tuple[RunConfig, Sequence[Checkpoint]]":
    """The configuration and the checkpoints of models that are named."""
    from forkpoint.analysis.checkpoints import named_checkpoints

    if named.base is None or not named.checkpoints:
        raise ConfigError("without a run, name the models: --base MODEL --checkpoints MODEL ..")
    config = held_out.config(named.recipe, named.base)
    return config, named_checkpoints(named.base, named.checkpoints)


def show(console: SafeConsole, found: "Dynamics", root: Path) -> None:
    """The paper's Table 1, what Fig. 4 shows, and how to keep more checkpoints."""
    from forkpoint.analysis.checkpoints import KEEP_MORE

    keep = 100 * found.keep_fraction
    console.title(root)
    console.say(
        f"{found.tokens:,} tokens of {found.completions:,} completions to {found.prompts:,} "
        "prompts",
        found.source,
        f"overlap of the top {keep:g} % positions, 95 % intervals over prompts "
        f"(chance: {keep:g} %)",
    )
    names = ("checkpoint", "step", "with base", "with final", "mean H")
    rows = table(*names, left=("checkpoint",))
    for one in found.checkpoints:
        rows.add_row(
            Text(visible(one.name)),
            "-" if one.step is None else str(one.step),
            "-" if one.overlap_with_base is None else one.overlap_with_base.percent(),
            "-" if one.overlap_with_final is None else one.overlap_with_final.percent(),
            f"{one.mean_entropy.value:.4f}",
        )
    console.print(rows)
    console.say("mean change of entropy, final minus base, by percentile of base entropy:")
    bins = found.change_by_bin
    for b in (bins[i] for i in sorted({0, len(bins) // 2, len(bins) - 1})):
        console.say(
            f"  {b.from_percentile:3g} to {b.to_percentile:3g} %: {b.change.value:+.5f} nats"
            f"{b.change.ends('{:+.5f}')}"
        )
    others = len(found.checkpoints) - 1
    if others < ENOUGH:
        console.note(f"{others} checkpoints besides the base; a run keeps more with {KEEP_MORE}")
