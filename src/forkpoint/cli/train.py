"""``forkpoint train``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from forkpoint.cli.options import Overrides
from forkpoint.cli.terminal import SafeConsole, StopFlag, visible
from forkpoint.errors import ConfigError
from forkpoint.selection.names import reads_fraction

if TYPE_CHECKING:
    from forkpoint.config import RunConfig


def train(
    recipe: Path | None = None,
    *,
    set_: Overrides = None,
    run_dir: Path | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Train a model on the forks of its own chains of thought.

    Parameters
    ----------
    recipe
        A TOML file, or the name of a shipped recipe such as lab_demo; without one the
        laboratory's defaults.
    run_dir
        Where the run's files go; default runs/NAME.
    resume
        Go on from the newest complete checkpoint in --run-dir, with the configuration stored there.
    dry_run
        Print the resolved configuration and what would run, then stop.
    """
    from forkpoint.config import load_config
    from forkpoint.runs.directory import check_schema
    from forkpoint.selection.rules import check_rules

    source = recipe
    if resume and recipe is None:
        if run_dir is None:
            raise ConfigError("--resume needs the run to go on with: --run-dir DIR")
        check_schema(run_dir)
        source = run_dir / "config.json"
    config: RunConfig = load_config(source, set_ or [])
    check_rules(config)
    root = run_dir or Path("runs") / config.name
    if dry_run:
        print(json.dumps(config.model_dump(mode="json"), indent=2))
        print(visible(describe(config, root), newlines=True))
        return 0
    from forkpoint.cli.table import LiveTable
    from forkpoint.ranks import speaks
    from forkpoint.training.loop import train as run

    console = SafeConsole(quiet=not speaks())
    with StopFlag() as stop, LiveTable(console, config.training.steps, str(root)) as table:
        outcome = run(config, root, resume=resume, observer=table, should_stop=stop)
    if outcome.stopped:
        console.say(
            f"stopped after step {outcome.state.step}; go on with "
            f"forkpoint train --resume --run-dir {root}",
        )
        return stop.exit_code
    console.say(f"done: {root}; look at it with forkpoint report {root}")
    return 0


def describe(config: "RunConfig", root: Path) -> str:
    """What a configuration would do, in four lines for people."""
    c, s = config, config.selection
    samples = c.rollout.prompts_per_step * c.rollout.group_size
    by_rule = f"{s.rule} {s.keep_fraction:.0%} of the tokens"
    trained = {
        "all": "every token",
        "threshold": f"tokens of more than {s.threshold_nats} nats",
    }.get(s.rule, by_rule if reads_fraction(s.rule) else f"what the rule {s.rule} keeps")
    if c.loss.marked is not None:
        trained += f" (with a loss of their own: what {c.loss.marked.rule} marks)"
    return (
        f"\nwould train {c.model.path}, computing in {c.model.compute_dtype}, on task "
        f"{c.task.type} into {root}\n"
        f"{c.training.steps} steps of {c.rollout.prompts_per_step} prompts x "
        f"{c.rollout.group_size} = {samples} completions of at most {c.rollout.max_new_tokens} "
        f"tokens at T = {c.rollout.temperature:g}\n"
        f"policy gradient ({c.loss.surrogate}, {c.training.gradient}) on {trained}: scope "
        f"{s.scope}, entropy {s.entropy}, divided by {c.loss.denominator}\n"
        f"{c.training.mini_batches} optimizer updates a step, lr {c.optim.lr:g}"
    )
