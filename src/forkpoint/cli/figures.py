"""``forkpoint figures``."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from forkpoint.cli.terminal import visible


def figures(
    run: Path,
    *,
    format_: Annotated[Literal["svg", "pdf", "png"], Parameter(name="--format")] = "svg",
) -> int:
    """Draw what a run's analyses or an ablation found, for a paper: RUN/figures/*.

    Parameters
    ----------
    run
        A run directory with an analysis, dynamics, temperature or branching in it, or the folder
        of an ablation.
    format_
        ``svg``, ``pdf`` or ``png``.
    """
    from forkpoint.figures.paper import draw_figures

    for path in draw_figures(run, format_):
        print(visible(str(path)))
    return 0
