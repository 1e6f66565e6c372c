"""``forkpoint ablate``."""

from pathlib import Path
from typing import TYPE_CHECKING

from forkpoint.cli.options import Overrides
from forkpoint.cli.terminal import SafeConsole, visible
from forkpoint.errors import ConfigError

if TYPE_CHECKING:
    from forkpoint.runs.ablation import Ablation


def ablate(
    recipe: Path, *, run_dir: Path | None = None, set_: Overrides = None, jobs: int = 1
) -> int:
    """Train variants of a run, each with the same seeds, and compare them.

    Stopped, it goes on when the same command is given again; runs that are through are not made
    again, and a recipe may gain variants and seeds.

    Parameters
    ----------
    recipe
        A TOML file of variants and seeds, or the name of a shipped one such as ablation_lab.
    run_dir
        Where the runs go; default runs/NAME.
    jobs
        Runs side by side; with several set training.threads=1.
    """
    from forkpoint.ablation.compare import compare
    from forkpoint.ablation.recipe import load_ablation, planned_runs
    from forkpoint.ablation.runs import make_runs
    from forkpoint.runs import RunDirectory
    from forkpoint.runs.atomic import write_json
    from forkpoint.runs.results import write_result

    if jobs < 1:
        raise ConfigError("--jobs is at least 1")
    ablation = load_ablation(recipe)
    root = run_dir or Path("runs") / ablation.name
    runs = planned_runs(ablation, root, set_ or [])
    reference = ablation.reference or ablation.variants[0].name
    console = SafeConsole()
    console.say(f"{len(ablation.variants)} variants, {len(ablation.seeds)} seeds, in {root}")
    claimed, stoppable = RunDirectory.claim(root), console.stoppable("go on with the same command")
    with claimed as directory, stoppable as stop:
        try:
            make_runs(runs, ablation.recipe, jobs=jobs, note=console.note, should_stop=stop)
        finally:
            found = compare(runs, reference)
            if found.arms:
                write_result(root, found)
                asked = ablation.model_dump(mode="json") | {"overrides": list(set_ or [])}
                write_json(directory.recipe_json, asked)
                directory.write_environment()
    _show(console, found)
    console.say(f"look at it with forkpoint report {root}")
    return 0


def _show(console: SafeConsole, found: "Ablation") -> None:
    width = max(len(arm.label) for arm in found.arms)
    console.title(f"accuracy after the last step, mean over seeds; difference to {found.reference}")
    for arm in found.arms:
        other = ""
        if arm.difference is not None:
            ends = arm.difference.ends("{:+.1f}", 100)
            other = f"{100 * arm.difference.value:+6.1f}{ends}"
        console.say(
            f"  {visible(arm.label):<{width}}  {arm.accuracy.percent():<24} {other:<24} "
            f"n = {arm.accuracy.n}"
        )
