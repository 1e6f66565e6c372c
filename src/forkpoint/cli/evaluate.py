"""``forkpoint eval``."""

import json
from pathlib import Path

from forkpoint.cli.options import Recipe, SampledModel
from forkpoint.cli.terminal import SafeConsole


def evaluate(
    recipe: Recipe = None,
    *,
    sampled: SampledModel = SampledModel(),  # noqa: B008
    run_dir: Path | None = None,
) -> int:
    """Measure a model's accuracy on held-out problems, with a 95 % interval.

    Parameters
    ----------
    run_dir
        Write the completions and the result there.
    """
    from forkpoint.config import load_config
    from forkpoint.evaluation.evaluate import evaluate_config

    counts = (("problems", sampled.problems), ("samples", sampled.samples))
    numbers = [f"evaluation.{name}={count}" for name, count in counts if count is not None]
    config = load_config(recipe, [*sampled.settings(sampled.model), *numbers])
    console = SafeConsole(stderr=True)  # the output is JSON
    kept = "whole parts are kept, the same command goes on"
    with console.stoppable(kept if run_dir else "nothing is kept without --run-dir") as stop:
        found = evaluate_config(config, run_dir, stop, console.note)
    print(json.dumps(found.model_dump(), indent=2))
    return 0
