"""``forkpoint report``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forkpoint.cli.terminal import visible


def report(
    *runs: Path,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("report.html"),
) -> int:
    """Put run directories into one HTML page that needs no network.

    Parameters
    ----------
    runs
        Run directories, several of which are drawn over each other; or the folder of an ablation.
    out
        The page.
    """
    from forkpoint.errors import RunError
    from forkpoint.report import build_report

    if not runs:
        raise RunError("name at least one run directory: forkpoint report RUN -o report.html")
    print(visible(str(build_report(runs, out))))
    return 0
