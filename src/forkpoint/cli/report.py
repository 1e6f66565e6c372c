"""``forkpoint report``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forkpoint.cli.terminal import SafeConsole, StopFlag, visible

EVERY_S = 5.0


def report(
    *runs: Path,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("report.html"),
    watch: Annotated[bool, Parameter(negative="")] = False,
    every: float | None = None,
) -> int:
    """Put run directories into one HTML page that needs no network.

    Parameters
    ----------
    runs
        Run directories, several of which are drawn over each other; or the folder of an ablation.
    out
        The page.
    watch
        Build the page anew whenever the runs' files have changed, until they have made their last
        step, or Ctrl-C.
    every
        Seconds between two looks at the files under --watch; default 5.
    """
    from forkpoint.errors import RunError
    from forkpoint.report import build_report

    if not runs:
        raise RunError("name at least one run directory: forkpoint report RUN -o report.html")
    if not watch:
        if every is not None:
            raise RunError("--every is read together with --watch only")
        print(visible(str(build_report(runs, out))))
        return 0
    from forkpoint.report.watch import watch as keep_building

    pause = EVERY_S if every is None else every
    if pause <= 0:
        raise RunError(f"--every {pause:g}: seconds must be above 0")
    console = SafeConsole()
    console.note(f"{out} is built anew as the runs go on; Ctrl-C ends this")
    with StopFlag() as stop:
        keep_building(runs, out, every=pause, note=console.note, should_stop=stop)
    console.say(out)
    return stop.exit_code if stop() else 0
