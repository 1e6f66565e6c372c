"""``forkpoint eval``."""

import json
from pathlib import Path

from forkpoint.cli.options import Recipe, SampledModel, note, stoppable


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
    from forkpoint.cli.console import SafeConsole
    from forkpoint.config import load_config
    from forkpoint.evaluation.evaluate import evaluate_config

    counts = (("problems", sampled.problems), ("samples", sampled.samples))
    numbers = [f"evaluation.{name}={count}" for name, count in counts if count is not None]
    config = load_config(recipe, [*sampled.settings(sampled.model), *numbers])
    console = SafeConsole(stderr=True)  # the output is JSON
    kept = "whole parts are kept, the same command goes on"
    if run_dir is None:
        kept = "nothing is kept without --run-dir"
    with stoppable(console, kept) as stop:
        found = evaluate_config(config, run_dir, stop, lambda text: note(console, text))
    print(json.dumps(found.model_dump(), indent=2))
    return 0
