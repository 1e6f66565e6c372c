"""``forkpoint temperature``."""

from pathlib import Path
from typing import TYPE_CHECKING

from forkpoint.cli.options import Recipe, SampledModel
from forkpoint.cli.terminal import SafeConsole, table
from forkpoint.errors import ConfigError

if TYPE_CHECKING:
    from forkpoint.analysis.temperature import TemperatureSettings
    from forkpoint.runs.results import Temperature


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

    settings = _settings(threshold, percentile, temperatures)
    config = sampled.config(recipe, sampled.model)
    console = SafeConsole()
    with console.stoppable("finished points are kept, the same command goes on") as stop:
        found = measure_temperature(config, settings, run_dir, stop, console.note)
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


def show(console: SafeConsole, found: "Temperature", root: Path) -> None:
    """Both sweeps."""
    percentile = found.threshold_percentile
    which = "" if percentile is None else f", the {percentile:g}th percentile"
    console.title(root)
    console.say(
        f"{found.model} on {found.task}: {found.problems} problems x {found.samples} samples at "
        "each point",
        f"forks: H > {found.entropy_threshold:.3f} nats{which}; {found.share_above:.1%} of the "
        "tokens",
        "accuracy, and its difference to plain sampling on the same problems in points, with 95 % "
        "intervals over problems:",
    )
    points = table("forks", "rest", "accuracy", "difference", "tokens", "truncated")
    for sweep in found.sweeps:
        for point in sweep.points:
            varied, gain = f"{point.temperature:g}", point.difference
            points.add_row(
                *((varied, "1") if sweep.varied == "forks" else ("1", varied)),
                point.accuracy.percent(),
                f"{100 * gain.value:+.1f}{gain.ends('{:+.1f}', 100)}" if gain else "-",
                f"{point.length_mean:.1f}",
                f"{point.truncated_fraction:.1%}",
            )
        points.add_section()
    console.print(points)
