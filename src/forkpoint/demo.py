"""The demo's runs and what comes out of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forkpoint.config import RunConfig, load_config
from forkpoint.errors import ConfigError
from forkpoint.runs import RunDirectory, read_metrics
from forkpoint.runs.metrics_log import evaluations
from forkpoint.runs.results import Demo, Estimate, write_result

DEMO_SETTINGS = (
    'name="demo"',
    'model.path="lab:walk"',
    "training.steps=16",
    "rollout.max_new_tokens=48",
    "evaluation.every=16",
    "evaluation.problems=1000",
    "checkpoint.every=10",
)
"""What the demo sets on top of the defaults; the recipe lab_demo says the same."""

CONTROL, RANDOM = "control", "random"
"""The folders of its other runs, in that of the run on the forks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRun:
    """One of the demo's runs."""

    folder: str
    """In the demo's, which is that of the run on the forks itself."""
    title: str
    config: RunConfig


def demo_runs(overrides: Sequence[str] = ()) -> list[DemoRun]:
    """The run on the forks, its control on the tokens that are left over, and one on as many tokens
    drawn at random; the three begin alike.

    Args:
        overrides: ``section.key=value``, for all; ``training.steps`` moves the last evaluation
            along.

    Raises:
        ConfigError: they leave nothing to show.
    """
    main = load_config(None, [*DEMO_SETTINGS, *overrides])
    _check_demo(main)
    share = main.selection.keep_fraction
    rest = f"{1 - share:.10g}"
    wanted = (
        ("", f"forks: policy gradient on the top {share:.0%} by entropy", []),
        (
            CONTROL,
            f"control: the bottom {float(rest):.0%}, same number of steps",
            ['name="demo-control"', 'selection.rule="bottom"', f"selection.keep_fraction={rest}"],
        ),
        (
            RANDOM,
            f"control: {share:.0%} drawn at random",
            ['name="demo-random"', 'selection.rule="random"'],
        ),
    )
    return [
        DemoRun(
            folder=folder,
            title=title,
            config=load_config(
                None,
                [
                    *DEMO_SETTINGS,
                    *overrides,
                    *settings,
                    *(["evaluation.at_start=false"] if folder else []),
                ],
            ),
        )
        for folder, title, settings in wanted
    ]


def _check_demo(config: RunConfig) -> None:
    if not (config.evaluation.every and config.evaluation.at_start):
        raise ConfigError(
            "the demo shows accuracies before and after: it needs evaluation.every > 0 and "
            "evaluation.at_start = true"
        )
    if config.selection.rule != "top":
        raise ConfigError(
            "the demo is of the forks: for selection.rule = "
            f"{config.selection.rule!r} use forkpoint train, or forkpoint ablate"
        )


def summarise(root: Path) -> Demo:
    """Read the accuracies off the runs' metrics and write results/demo.json in ``root``."""
    main, control, random = (
        _accuracies(RunDirectory(root / folder).metrics_jsonl) for folder in ("", CONTROL, RANDOM)
    )
    demo = Demo(
        accuracy_before=main[0],
        accuracy_after=main[-1],
        accuracy_control=control[-1],
        accuracy_random=random[-1],
    )
    write_result(root, demo)
    return demo


def _accuracies(path: Path) -> list[Estimate]:
    """The evaluations of a run, in order."""
    return [one.accuracy for one in evaluations(read_metrics(path))]
