"""``forkpoint eval``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from forkpoint.cli.options import Overrides, note, shorthands

if TYPE_CHECKING:
    from forkpoint.config import RunConfig


def evaluate(
    recipe: Path | None = None,
    *,
    model: str | None = None,
    task: str | None = None,
    problems: Annotated[int | None, Parameter(help="How many held-out problems.")] = None,
    samples: Annotated[int | None, Parameter(help="Completions per problem.")] = None,
    set_: Overrides = None,
    run_dir: Path | None = None,
) -> int:
    """Measure a model's accuracy on held-out problems, with a 95 % interval.

    Parameters
    ----------
    recipe
        A TOML file for the task, its rewards and how to sample; without one the laboratory.
    model
        ``lab``, a folder (a run's checkpoint is one) or a hub id.
    task
        ``lab``, or the name of a reasoning-gym task such as chain_sum.
    run_dir
        Write the completions and the result there.
    """
    from forkpoint.cli.console import SafeConsole
    from forkpoint.evaluation.evaluate import evaluate_config
    from forkpoint.training.stop import StopFlag

    config = _config(recipe, model, task, problems, samples, set_ or [])
    console = SafeConsole(stderr=True)  # the output is JSON
    with StopFlag() as stop:
        evaluation = evaluate_config(config, run_dir, stop, lambda text: note(console, text))
    print(json.dumps(evaluation.model_dump(), indent=2))
    return 0


def _config(
    recipe: Path | None,
    model: str | None,
    task: str | None,
    problems: int | None,
    samples: int | None,
    overrides: list[str],
) -> "RunConfig":
    from forkpoint.config import load_config

    settings = shorthands(model, task)
    if problems is not None:
        settings.append(f"evaluation.problems={problems}")
    if samples is not None:
        settings.append(f"evaluation.samples={samples}")
    return load_config(recipe, [*settings, *overrides])
