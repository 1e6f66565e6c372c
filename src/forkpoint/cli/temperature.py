"""``forkpoint temperature``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from forkpoint.cli.options import Overrides, note, title
from forkpoint.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from forkpoint.analysis.temperature import TemperatureSettings
    from forkpoint.runs.results import Estimate, Temperature, TemperatureSweep


def temperature(
    *,
    run_dir: Path,
    model: str | None = None,
    task: str | None = None,
    recipe: Path | None = None,
    threshold: float | None = None,
    percentile: float | None = None,
    temperatures: str | None = None,
    problems: Annotated[int | None, Parameter(help="How many held-out problems.")] = None,
    samples: Annotated[int | None, Parameter(help="Completions per problem.")] = None,
    set_: Overrides = None,
) -> int:
    """Measure accuracy with forks and the rest decoded at different temperatures.

    Forks at each temperature with the rest at 1, then the rest at each with forks at 1. The same
    command again goes on where it was stopped, with more temperatures too.

    Parameters
    ----------
    run_dir
        Where the analysis goes; a run's folder, or a new one.
    model
        ``lab``, a folder (a run's checkpoint is one) or a hub id.
    task
        ``lab``, or the name of a reasoning-gym task such as chain_sum.
    recipe
        A TOML file for the task, its rewards and how to sample; without one the laboratory.
    threshold
        Positions of more entropy than this, in nats at temperature 1, are forks.
    percentile
        The threshold as a percentile of the entropies at temperature 1; default 80.
    temperatures
        With commas between; 0 is greedy. Default 0,0.05,0.3,0.6,1,2,3,5.
    """
    from forkpoint.analysis.temperature import measure_temperature
    from forkpoint.cli.analyze import analysis_config
    from forkpoint.cli.console import SafeConsole
    from forkpoint.training.stop import StopFlag

    settings = _settings(threshold, percentile, temperatures)
    config = analysis_config(recipe, model, task, problems, samples, set_ or [])
    console = SafeConsole()
    with StopFlag() as stop:
        try:
            summary = measure_temperature(
                config, settings, run_dir, stop, lambda text: note(console, text)
            )
        except Interrupted as stopped:
            if stop.signal is None:
                raise
            note(console, f"{stopped}; finished points are kept, the same command goes on")
            return stop.exit_code
    show(console, summary, run_dir)
    return 0


def _settings(
    threshold: float | None, percentile: float | None, temperatures: str | None
) -> "TemperatureSettings":
    from forkpoint.analysis.temperature import PERCENTILE, TEMPERATURES, TemperatureSettings

    if threshold is not None and percentile is not None:
        raise ConfigError("--threshold and --percentile both say what a fork is: give one")
    try:
        listed = [float(text) for text in (temperatures or "").split(",") if text.strip()]
    except ValueError:
        raise ConfigError(
            f"--temperatures {temperatures!r}: expected numbers with commas between"
        ) from None
    return TemperatureSettings(
        threshold_nats=threshold,
        percentile=PERCENTILE if percentile is None else percentile,
        temperatures=tuple(listed) if temperatures is not None else TEMPERATURES,
    )


# ---- the table on a terminal --------------------------------------------------------------------


def show(console: "Console", found: "Temperature", root: Path) -> None:
    """Both sweeps."""
    percentile = found.threshold_percentile
    which = "" if percentile is None else f", the {percentile:g}th percentile"
    title(console, root)
    for line in (
        f"{found.model} on {found.task}: {found.problems} problems x {found.samples} samples at "
        "each point",
        f"forks: H > {found.entropy_threshold:.3f} nats{which}; {found.share_above:.1%} of the "
        "tokens",
        "accuracy, and its difference to plain sampling on the same problems in points, with 95 % "
        "intervals over problems:",
    ):
        console.print(line, highlight=False, markup=False)
    console.print(_table(found.sweeps))


def _table(sweeps: "Sequence[TemperatureSweep]") -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("forks", "rest", "accuracy", "difference", "tokens", "truncated"):
        table.add_column(name, justify="right", no_wrap=True)
    for sweep in sweeps:
        for point in sweep.points:
            varied = f"{point.temperature:g}"
            table.add_row(
                *((varied, "1") if sweep.varied == "forks" else ("1", varied)),
                point.accuracy.percent(),
                _points(point.difference),
                f"{point.length_mean:.1f}",
                f"{point.truncated_fraction:.1%}",
            )
        table.add_section()
    return table


def _points(difference: "Estimate | None") -> str:
    if difference is None:
        return "-"
    return f"{100 * difference.value:+.1f}{difference.ends('{:+.1f}', 100)}"
