"""The demo's two runs and what comes out of them."""

from collections.abc import Sequence
from pathlib import Path

from forkpoint.config import RunConfig, load_config
from forkpoint.errors import RunError
from forkpoint.runs import RunDirectory, read_metrics
from forkpoint.runs.metrics_log import evaluations
from forkpoint.runs.results import Demo, Estimate, write_result

DEMO_SETTINGS = (
    'name="demo"',
    "training.steps=16",
    "optim.lr=1.5e-4",
    "rollout.max_new_tokens=168",
    "evaluation.every=16",
    "evaluation.problems=1000",
    "checkpoint.every=10",
)
"""What the demo sets on top of the defaults; the recipe lab_demo says the same."""


def demo_configs(overrides: Sequence[str] = ()) -> tuple[RunConfig, RunConfig]:
    """The run on the forks, and its control on the tokens that are left over.

    Args:
        overrides: ``section.key=value``, for both runs; ``training.steps`` moves the last
            evaluation along.
    """
    config = load_config(None, [*DEMO_SETTINGS, *overrides])
    rest = 1 - config.selection.keep_fraction
    control = load_config(
        None,
        [
            *DEMO_SETTINGS,
            *overrides,
            'name="demo-control"',
            'selection.rule="bottom"',
            f"selection.keep_fraction={rest:.10g}",
            "evaluation.at_start=false",
        ],
    )
    return config, control


def summarise(root: Path) -> Demo:
    """Read the accuracies off the two runs' metrics and write results/demo.json in ``root``."""
    main, control = (_accuracies(RunDirectory(p).metrics_jsonl) for p in (root, root / "control"))
    demo = Demo(accuracy_before=main[0], accuracy_after=main[-1], accuracy_control=control[-1])
    write_result(root, demo)
    return demo


def _accuracies(path: Path) -> list[Estimate]:
    """The evaluations of a run, in order.

    Raises:
        RunError: there is none.
    """
    found = [one.accuracy for one in evaluations(read_metrics(path))]
    if not found:
        raise RunError(f"{path} holds no evaluation: the demo needs evaluation.every > 0")
    return found
