"""``forkpoint temperature``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from forkpoint.cli.options import Recipe, SampledModel, note, say, stoppable, table, title
from forkpoint.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from forkpoint.analysis.temperature import TemperatureSettings
    from forkpoint.runs.results import Estimate, Temperature, TemperatureSweep


def temperature(
    *,
    run_dir: Path,
    recipe: Recipe = None,
    sampled: SampledModel = SampledModel(),  # noqa: B008
    threshold: float | None = None,
    percentile: float | None = None,
    temperatures: str | None = None,
) -> int:
    """Measure accuracy with forks and the rest decoded at different temperatures.

    Forks at each temperature with the rest at 1, then the rest at each with forks at 1. The same
    command again goes on where it was stopped, with more temperatures too.

    Parameters
    ----------
    run_dir
        Where the analysis goes; a run's folder, or a new one.
    threshold
        Positions of more entropy than this, in nats at temperature 1, are forks.
    percentile
        The threshold as a percentile of the entropies at temperature 1; default 80.
    temperatures
        With commas between; 0 is greedy. Default 0,0.05,0.3,0.6,1,2,3,5.
    """
    from forkpoint.analysis.temperature import measure_temperature
    from forkpoint.cli.console import SafeConsole

    settings = _settings(threshold, percentile, temperatures)
    config = sampled.config(recipe, sampled.model)
    console = SafeConsole()
    with stoppable(console, "finished points are kept, the same command goes on") as stop:
        found = measure_temperature(
            config, settings, run_dir, stop, lambda text: note(console, text)
        )
    show(console, found, run_dir)
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
    say(
        console,
        f"{found.model} on {found.task}: {found.problems} problems x {found.samples} samples at "
        "each point",
        f"forks: H > {found.entropy_threshold:.3f} nats{which}; {found.share_above:.1%} of the "
        "tokens",
        "accuracy, and its difference to plain sampling on the same problems in points, with 95 % "
        "intervals over problems:",
    )
    console.print(_table(found.sweeps))


def _table(sweeps: "Sequence[TemperatureSweep]") -> Any:
    points = table("forks", "rest", "accuracy", "difference", "tokens", "truncated")
    for sweep in sweeps:
        for point in sweep.points:
            varied = f"{point.temperature:g}"
            points.add_row(
                *((varied, "1") if sweep.varied == "forks" else ("1", varied)),
                point.accuracy.percent(),
                _points(point.difference),
                f"{point.length_mean:.1f}",
                f"{point.truncated_fraction:.1%}",
            )
        points.add_section()
    return points


def _points(difference: "Estimate | None") -> str:
    if difference is None:
        return "-"
    return f"{100 * difference.value:+.1f}{difference.ends('{:+.1f}', 100)}"
