"""``forkpoint demo``."""

import time
from itertools import count
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forkpoint.cli.options import Overrides
from forkpoint.cli.terminal import SafeConsole, StopFlag
from forkpoint.errors import ConfigError


def demo(
    *,
    run_dir: Path | None = None,
    set_: Overrides = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """The finding in minutes, offline: train on the forks, then on everything but the forks.

    A policy of 0.6 million weights that walks about a grid is trained to meet a goal, with the
    policy gradient on the 20 % of tokens with the highest entropy; then, from the same start, on
    the 80 % with the lowest; then on 20 % drawn at random. All are evaluated on held-out problems.

    Parameters
    ----------
    run_dir
        Where the files go; default runs/demo, or the next free name.
    resume
        Go on with the demo in --run-dir, which was stopped.
    """
    from forkpoint.cli.table import LiveTable
    from forkpoint.demo import demo_runs, summarise
    from forkpoint.report import build_report
    from forkpoint.training.loop import train

    if resume and run_dir is None:
        raise ConfigError("--resume needs the demo to go on with: --run-dir DIR")
    started = time.perf_counter()
    free = (Path("runs", "demo" + (f"-{number}" if number > 1 else "")) for number in count(1))
    root = run_dir or next(path for path in free if not path.exists())
    runs = demo_runs(set_ or [])
    console = SafeConsole()
    with StopFlag() as stop:
        for run in runs:
            folder = root / run.folder
            with LiveTable(console, run.config.training.steps, run.title) as table:
                again = resume and (folder / "config.json").exists()
                outcome = train(run.config, folder, resume=again, observer=table, should_stop=stop)
            if outcome.stopped:
                console.say(f"stopped; go on with forkpoint demo --resume --run-dir {root}")
                return stop.exit_code
    found = summarise(root)
    report = build_report([root], root / "report.html")
    console.title("accuracy on held-out problems, 95 % interval")
    for label, estimate in (
        ("before", found.accuracy_before),
        ("trained on the forks", found.accuracy_after),
        ("trained on the rest", found.accuracy_control),
        ("on tokens at random", found.accuracy_random),
    ):
        if estimate is not None:
            console.say(f"  {label:<22}{estimate.percent()}   n = {estimate.n}")
    minutes = (time.perf_counter() - started) / 60
    console.print(f"\nreport: {report}", highlight=False, markup=False, soft_wrap=True)
    console.say(f"in {minutes:.1f} minutes")
    return 0
