"""The paper's figures for a paper of one's own: drawn by matplotlib from analysis/*.json alone.

``FIGURES`` is the list; a figure whose file is not there is left out.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

from forkpoint.analysis.clouds import place, shown, sizes
from forkpoint.analysis.words import Word, read_words
from forkpoint.errors import ConfigError, RunError
from forkpoint.runs.atomic import write_atomically

FORMATS = ("svg", "pdf", "png")

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#888888"  # told apart by every kind of eye

CLOUD_WORDS = 100
"""Words in each cloud, as in the paper."""

COLUMNS = 3
"""Panels in a row."""

Figure: TypeAlias = Any
Axes: TypeAlias = Any


def draw_figures(root: Path, format_: str) -> list[Path]:
    """Draw what there is in ``root``/analysis as analysis/figures/*.FORMAT.

    Returns:
        The files.

    Raises:
        RunError: there is nothing to draw, or a file is not what it should be.
        ConfigError: matplotlib is not installed, or no such format.
    """
    if format_ not in FORMATS:
        raise ConfigError(f"--format {format_!r}: expected {', '.join(FORMATS)}")
    require_matplotlib()
    analysis = root / "analysis"
    paths = []
    for name, (source, draw) in FIGURES.items():
        data = _load(analysis / source)
        if data is not None and (figure := _drawn(draw, data, analysis / source)) is not None:
            paths.append(analysis / "figures" / f"{name}.{format_}")
            save(figure, paths[-1], format_)
    if not paths:
        raise RunError(f"{analysis} holds nothing to draw: run forkpoint analyze first")
    return paths


def require_matplotlib() -> None:
    """
    Raises:
        ConfigError: with the line that installs it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("figures need matplotlib: pip install 'forkpoint[figures]'") from error


def save(figure: Figure, path: Path, format_: str) -> None:
    """Write a figure; the same numbers give the same bytes.

    Raises:
        RunError: the disk is full.
    """
    import matplotlib

    date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[format_]
    settings: dict[Any, Any] = {
        "svg.hashsalt": "forkpoint",
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
    }

    def write(partial: Path) -> None:
        figure.savefig(partial, format=format_, metadata=date, bbox_inches="tight", dpi=200)

    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        write_atomically(path, write)


def _load(path: Path) -> Any:
    """The rows of words.parquet, or a JSON object; None if there is no such file."""
    if not path.exists():
        return None
    if path.suffix == ".parquet":
        return read_words(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as JSON: {error}") from error


def _drawn(draw: Callable[[Any], Figure | None], data: Any, path: Path) -> Figure | None:
    try:
        return draw(data)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise RunError(
            f"{path} is not what forkpoint writes: {type(error).__name__}: {error}"
        ) from error


def _figure(width: float = 5.0, height: float = 3.2) -> tuple[Figure, Axes]:
    """A figure of one panel; sizes in inches."""
    figure, panels = _panels(1, width, height)
    return figure, panels[0]


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of panels, ``COLUMNS`` in a row; sizes of one panel in inches."""
    from matplotlib.figure import Figure as New

    columns, rows = min(count, COLUMNS), -(-count // COLUMNS)
    figure = New(figsize=(width * columns, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_visible(axes in panels[:count])
    return figure, panels[:count]


# ---- one model -----------------------------------------------------------------------------------


def histogram(summary: dict[str, Any]) -> Figure:
    """Fig. 2a: frequency on a log axis, the forks' threshold marked."""
    figure, axes = _figure()
    edges, counts = summary["histogram"]["edges"], summary["histogram"]["counts"]
    axes.stairs([count or float("nan") for count in counts], edges, fill=True, color=BLUE)
    axes.set_yscale("log")
    threshold, keep = summary["threshold_nats"], 100 * summary["keep_fraction"]
    axes.axvline(threshold, color=ORANGE, linewidth=1)
    axes.annotate(
        f"top {keep:g} %: {threshold:.3f} nats or more",
        (threshold, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, -10),
        textcoords="offset points",
        color=ORANGE,
        fontsize=8,
    )
    axes.set_xlabel("entropy (nats)")
    axes.set_ylabel("tokens")
    axes.set_title(f"{summary['share_below_0.01']:.1%} of {summary['tokens']:,} tokens below 0.01")
    return figure


def by_position(summary: dict[str, Any]) -> Figure | None:
    """Mean entropy along the completion."""
    rows = [row for row in summary["by_position"] if row["mean"] is not None]
    if not rows:
        return None
    figure, axes = _figure()
    middles = [(row["from"] + row["to"]) / 2 for row in rows]
    axes.plot(middles, [row["mean"] for row in rows], color=BLUE, marker="o", markersize=2.5)
    axes.set_xlabel("position in the completion (tokens)")
    axes.set_ylabel("mean entropy (nats)")
    axes.set_ylim(bottom=0)
    return figure


def highest_words(words: list[Word]) -> Figure | None:
    """Fig. 2b: the words of highest mean entropy."""
    return _cloud(words[: _half(words)], BLUE)


def lowest_words(words: list[Word]) -> Figure | None:
    """Fig. 2c: the words of lowest mean entropy."""
    return _cloud(words[::-1][: _half(words)], ORANGE)


def _half(words: list[Word]) -> int:
    """Words in a cloud: no word is in both, unless it is the only one."""
    return min(CLOUD_WORDS, max(1, len(words) // 2))


def _cloud(words: list[Word], colour: str) -> Figure | None:
    if not words:
        return None
    from matplotlib.patches import PathPatch
    from matplotlib.transforms import Affine2D

    figure, axes = _figure(width=6, height=4)
    fonts = sizes([word.mean for word in words])
    paths = [_outline(shown(word.text), size) for word, size in zip(words, fonts, strict=True)]
    extents = [path.get_extents() for path in paths]
    boxes = place([(e.width, e.height, size) for e, size in zip(extents, fonts, strict=True)])
    for path, extent, box in zip(paths, extents, boxes, strict=True):
        moved = Affine2D().translate(box.x - extent.x0, box.y - extent.y0).transform_path(path)
        axes.add_patch(PathPatch(moved, facecolor=colour, edgecolor="none"))
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_xlim(min(b.x for b in boxes), max(b.x + b.width for b in boxes))
    axes.set_ylim(min(b.y for b in boxes), max(b.y + b.height for b in boxes))
    return figure


def _outline(text: str, size: float) -> Any:
    """A word as a shape: the same picture in every format, whatever fonts its reader has."""
    from matplotlib.textpath import TextPath

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        return TextPath((0, 0), text, size=size)


# ---- several checkpoints -------------------------------------------------------------------------


def overlap(dynamics: dict[str, Any]) -> Figure:
    """Table 1 as curves: top tokens shared with the base and with the final checkpoint."""
    figure, axes = _figure()
    x, names = _steps(dynamics)
    for key, label, colour in (
        ("overlap_with_base", "with the base", BLUE),
        ("overlap_with_final", "with the final", ORANGE),
    ):
        _curve(axes, x, dynamics[key], label, colour)
    keep = dynamics["keep_fraction"]
    axes.axhline(keep, color=GREY, linestyle=":", linewidth=1)
    axes.text(x[0], keep, " chance", color=GREY, va="bottom", fontsize=8)
    axes.set_ylabel(f"overlap of the top {100 * keep:g} %")
    axes.set_ylim(0, 1.02)
    _step_axis(axes, x, names)
    axes.legend(frameon=False)
    return figure


def change_by_bin(dynamics: dict[str, Any]) -> Figure | None:
    """Fig. 4: mean change of entropy in each 5 % bin of base entropy."""
    bins = dynamics["change_by_bin"]
    if not bins:
        return None
    figure, axes = _figure()
    left = [b["from_percentile"] for b in bins]
    width = [b["to_percentile"] - b["from_percentile"] for b in bins]
    means = [b["mean"] for b in bins]
    axes.bar(left, means, width, align="edge", color=BLUE, edgecolor="white", linewidth=0.5)
    middles = [a + w / 2 for a, w in zip(left, width, strict=True)]
    axes.errorbar(middles, means, _errors(bins, means), fmt="none", ecolor="black", elinewidth=0.8)
    smallest = min((abs(m) for m in means if m), default=1e-4)
    axes.set_yscale("symlog", linthresh=max(smallest, 1e-6))
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xlabel("percentile of base entropy")
    axes.set_ylabel("mean change (nats, symlog)")
    return figure


def percentiles(dynamics: dict[str, Any]) -> Figure:
    """Fig. 5: percentiles of entropy against step, a panel each."""
    series = dynamics["percentiles"]
    figure, panels = _panels(len(series), width=2.3, height=1.9)
    x, names = _steps(dynamics)
    for axes, (percentile, values) in zip(panels, series.items(), strict=True):
        axes.plot(x, values, color=BLUE, marker="o", markersize=2.5)
        axes.set_title(f"{percentile}th percentile", fontsize=9)
        axes.tick_params(labelsize=7)
        _step_axis(axes, x, names)
    figure.supylabel("entropy (nats)", fontsize=9)
    return figure


# ---- interventions -------------------------------------------------------------------------------


def temperature(data: dict[str, Any]) -> Figure | None:
    """Fig. 3: accuracy when the forks, or the rest, are decoded at another temperature."""
    sweeps = [s for s in data["sweeps"] if s["points"]]
    if not sweeps:
        return None
    figure, axes = _figure()
    labels = {"forks": ("forks varied", ORANGE), "rest": ("the rest varied", BLUE)}
    for sweep in sweeps:
        points = sorted(sweep["points"], key=lambda point: point["temperature"])
        label, colour = labels.get(sweep["varied"], (sweep["varied"], GREY))
        x = [point["temperature"] for point in points]
        _curve(axes, x, [point["accuracy"] for point in points], label, colour)
    axes.set_xscale("symlog", linthresh=0.2)
    ticks = sorted({p["temperature"] for s in sweeps for p in s["points"]})
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xlim(left=-0.05)
    axes.set_xlabel("decoding temperature of the varied tokens (the others: 1)")
    axes.set_ylabel("accuracy")
    axes.legend(frameon=False)
    return figure


def branching(data: dict[str, Any]) -> Figure | None:
    """How far the expected reward moves when a token is replaced: high entropy against low."""
    groups = {k: g["squared_gap"] for k, g in data["groups"].items() if g["squared_gap"]}
    if not groups:
        return None
    figure, axes = _figure(width=3.2)
    values = [gap["value"] for gap in groups.values()]
    errors = _errors(groups.values(), values)
    axes.errorbar(range(len(groups)), values, errors, fmt="o", color=BLUE, capsize=3)
    axes.set_xticks(range(len(groups)), [f"{kind} entropy" for kind in groups])
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.axhline(0, color=GREY, linewidth=0.5)
    axes.set_ylabel("squared gap of the reward")
    return figure


FIGURES: dict[str, tuple[str, Callable[[Any], Figure | None]]] = {
    "entropy_histogram": ("summary.json", histogram),
    "words_highest": ("words.parquet", highest_words),
    "words_lowest": ("words.parquet", lowest_words),
    "entropy_by_position": ("summary.json", by_position),
    "overlap": ("dynamics.json", overlap),
    "change_by_bin": ("dynamics.json", change_by_bin),
    "percentiles": ("dynamics.json", percentiles),
    "temperature": ("temperature.json", temperature),
    "branching": ("branching.json", branching),
}
"""File name -> what it is drawn from, and how."""


# ---- parts of figures ----------------------------------------------------------------------------


def _steps(dynamics: dict[str, Any]) -> tuple[list[float], list[str] | None]:
    """Where each checkpoint stands: its step, or its number with its name if steps are unknown."""
    checkpoints = dynamics["checkpoints"]
    steps = [c["step"] for c in checkpoints]
    if all(s is not None for s in steps) and all(a < b for a, b in pairwise(steps)):
        return steps, None
    return list(range(len(steps))), [c["name"] for c in checkpoints]


def _step_axis(axes: Axes, x: Sequence[float], names: list[str] | None) -> None:
    if names is None:
        axes.set_xlabel("step", fontsize=8)
        axes.locator_params(axis="x", integer=True)
    else:
        axes.set_xticks(x, names, rotation=30, ha="right", fontsize=7)


def _curve(
    axes: Axes,
    x: Sequence[float],
    estimates: Sequence[dict[str, Any] | None],
    label: str,
    colour: str,
) -> None:
    """Values with their intervals; a value that is not known is left out."""
    known = [(at, e) for at, e in zip(x, estimates, strict=True) if e is not None]
    values = [e["value"] for _, e in known]
    axes.errorbar(
        [at for at, _ in known],
        values,
        _errors([e for _, e in known], values),
        label=label,
        color=colour,
        marker="o",
        markersize=3,
        capsize=2,
        elinewidth=0.8,
    )


def _errors(estimates: Iterable[dict[str, Any]], values: Sequence[float]) -> list[list[float]]:
    """Lengths of the error bars below and above; 0 where there is no interval."""
    below, above = [], []
    for estimate, value in zip(estimates, values, strict=True):
        low, high = estimate["low"], estimate["high"]
        below.append(0.0 if low is None else max(0.0, value - low))
        above.append(0.0 if high is None else max(0.0, high - value))
    return [below, above]
