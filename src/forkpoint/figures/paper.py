"""The paper's figures for a paper of one's own, and what they and the report draw of results."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forkpoint.analysis.words import Word, read_words
from forkpoint.errors import ConfigError, RunError
from forkpoint.figures import ablation
from forkpoint.figures.axes import Axis, Point, Trace, decades, reach, traces
from forkpoint.figures.curves import Series, curves
from forkpoint.figures.estimates import ForestRow, Strip, forest, strips
from forkpoint.figures.histogram import histogram
from forkpoint.figures.render import FORMATS, INK, save, series_colour
from forkpoint.figures.text import ends, number, percent
from forkpoint.figures.words import CloudWord, cloud, shown
from forkpoint.runs import RunDirectory
from forkpoint.runs.ablation import Ablation
from forkpoint.runs.directory import check_schema
from forkpoint.runs.results import (
    Branching,
    Dynamics,
    EntropyBin,
    Estimate,
    GapGroup,
    Pattern,
    Replacement,
    Temperature,
    find_result,
)

if TYPE_CHECKING:
    import altair as alt

CLOUD_WORDS = 100
"""Of highest, and of lowest mean entropy; as in the paper's figure 2."""
LINEAR_NATS = 1e-4
"""Changes up to about this are drawn on a linear piece of the axis; the paper's axis ends here."""
LINEAR_TEMPERATURE = 0.2
"""The axis is linear up to about here and logarithmic beyond, as in the paper's figure 3."""
KINDS = (("high", 1), ("low", 0))
"""Kinds of positions and their colours."""
SWEEPS = {"forks": 1, "rest": 0}


# ---- where the entropy is -----------------------------------------------------------------------


def entropy_histogram(pattern: Pattern) -> "alt.LayerChart":
    """Fig. 2a: frequency on a log axis, the forks' threshold marked."""
    marks = [(f"p{q}", pattern.percentiles[q]) for q in (50, 80, 95) if q in pattern.percentiles]
    return histogram(
        pattern.histogram.counts,
        pattern.histogram.edges,
        marks=[*marks, ("threshold", pattern.entropy_threshold)],
        label=f"Histogram of the entropies of {pattern.tokens} tokens",
    )


def entropy_percentiles(pattern: Pattern) -> "alt.LayerChart":
    """Entropy against the percentile of tokens."""
    points = [
        Point(q, value, f"{q} % of the tokens have at most {number(value)} nats")
        for q, value in sorted(pattern.percentiles.items())
    ]
    low, high = reach([0.0, *(p.y for p in points)])
    threshold = pattern.entropy_threshold
    return traces(
        [Trace(points=points)],
        Axis(low=0.0, high=100.0, title="percentile of tokens"),
        Axis(low=low, high=high),
        label=f"Entropy in nats against the percentile of tokens, up to {number(high)} nats",
        guides=[(threshold, f"threshold {number(threshold)}")],
    )


def entropy_by_position(pattern: Pattern) -> "alt.LayerChart | None":
    """Mean entropy along the completion."""
    return _by(pattern.by_position, "position in the answer", "tokens")


def entropy_by_length(pattern: Pattern) -> "alt.LayerChart | None":
    """Mean entropy of completions of different lengths."""
    return _by(pattern.by_length, "tokens of the answer", "completions")


def _by(bins: Sequence[EntropyBin], title: str, what: str) -> "alt.LayerChart | None":
    """Mean entropy of the bins, drawn at their middles; logarithmic where bins grow."""
    points = [
        Point(
            x=(b.first + b.last) / 2,
            y=b.mean_entropy,
            text=f"{b.first} to {b.last}: {number(b.mean_entropy)} nats, {b.count:,} {what}",
        )
        for b in bins
        if b.mean_entropy is not None
    ]
    if not points:
        return None
    widths = [b.last + 1 - b.first for b in bins]
    last = max(p.x for p in points)
    x = Axis(low=0.0, high=last or 1.0, title=title, whole=True)
    if max(widths) > 2 * widths[0]:
        far = [10.0**k for k in range(1, 8) if widths[0] < 10.0**k <= last]
        title, ticks = f"{title} (logarithmic)", [0.0, *far]
        x = Axis(low=0.0, high=last, title=title, linear=float(widths[0]), ticks=ticks)
    low, high = reach([0.0, *(p.y for p in points)])
    label = f"Mean entropy in nats against {title}, in {len(points)} bins"
    return traces([Trace(points=points)], x, Axis(low=low, high=high), label=label)


def ends_of(words: Sequence[Word]) -> tuple[Sequence[Word], Sequence[Word]]:
    """Words of highest mean entropy, and of lowest from the lowest up; no word is in both."""
    half = min(CLOUD_WORDS, len(words) // 2)
    return words[: min(CLOUD_WORDS, len(words) - half)], words[len(words) - half :][::-1]


def word_cloud(words: Sequence[Word], name: str) -> "alt.LayerChart | None":
    """Fig. 2b and c: words as high as their mean entropy."""
    found = [
        CloudWord(
            text=shown(word.text.strip() or word.text),
            value=word.mean,
            title=f"{shown(word.text)}: mean {number(word.mean)} nats, {word.count:,} times",
        )
        for word in words
    ]
    return (
        cloud(found, f"Word cloud of the {len(found)} words of {name} mean entropy")
        if found
        else None
    )


# ---- what training changes ----------------------------------------------------------------------


def steps_of(dynamics: Dynamics) -> tuple[list[int], str]:
    """Where each checkpoint stands: at its step if all have one, else in the order given."""
    known = [c.step for c in dynamics.checkpoints]
    steps = [step for step in known if step is not None]
    if len(steps) == len(known) and all(a < b for a, b in pairwise(steps)):
        return steps, "step"
    return list(range(len(known))), "checkpoint, in the order given"


def overlap(dynamics: Dynamics) -> "alt.LayerChart":
    """Table 1 as curves: top positions shared with the base and with the final checkpoint."""
    steps, title = steps_of(dynamics)
    columns = (
        ("with the base", [c.overlap_with_base for c in dynamics.checkpoints]),
        ("with the final", [c.overlap_with_final for c in dynamics.checkpoints]),
    )
    found = [
        Trace(
            series=series,
            name=name,
            points=[
                _point(step, e, f"{title.split(',')[0]} {step}: {_share(e)} shared {name}")
                for step, e in zip(steps, column, strict=True)
                if e is not None
            ],
        )
        for series, (name, column) in enumerate(columns)
    ]
    last = (f"{t.name} {percent(t.points[-1].y)} at the end" for t in found if t.points)
    chance = dynamics.keep_fraction
    one = steps[0] == steps[-1]
    return traces(
        found,
        Axis(low=steps[0] - one, high=steps[-1] + one, title=title, whole=True),
        Axis(low=0.0, high=1.0, share=True),
        label="Share of the top positions that are shared: " + "; ".join(last),
        guides=[(chance, f"chance {percent(chance)}")],
    )


def _point(x: float, e: Estimate, text: str) -> Point:
    return Point(x, e.value, text, e.low, e.high)


def _share(e: Estimate) -> str:
    return percent(e.value) + (f" {ends(*e.interval)}" if e.interval else "")


def change_by_bin(dynamics: Dynamics) -> "alt.LayerChart | None":
    """Fig. 4: mean change of entropy in each 5 % bin of base entropy."""
    points = []
    for b in dynamics.change_by_bin:
        nats = f"{number(b.lowest_base_entropy)} to {number(b.highest_base_entropy)} nats"
        span, change = f"{b.from_percentile:g} to {b.to_percentile:g} %", b.change
        text = f"{span} (base {nats}): {number(change.value)} nats"
        if change.interval:
            text += f" [{number(change.interval[0])}, {number(change.interval[1])}]"
        middle = (b.from_percentile + b.to_percentile) / 2
        points.append(_point(middle, change, f"{text}, {b.tokens:,} tokens"))
    if not points:
        return None
    values = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    low, high = min(0.0, *values), max(LINEAR_NATS, *values)
    first, last = (number(p.y) for p in (points[0], points[-1]))
    return traces(
        [Trace(points=points, joined=False)],
        Axis(low=0.0, high=100.0, title="percentile of base entropy"),
        Axis(low=low, high=high, linear=LINEAR_NATS, ticks=decades(low, high, LINEAR_NATS)),
        label="Change of entropy from the base to the final checkpoint, by base entropy: "
        f"{first} nats in the lowest bin, {last} in the highest",
        guides=[(0.0, "")],
    )


def entropy_at_percentile(dynamics: Dynamics, percentile: int) -> "alt.LayerChart":
    """Fig. 5: a percentile of entropy against the steps, with its interval."""
    steps, _ = steps_of(dynamics)
    found = [c.percentiles[percentile] for c in dynamics.checkpoints]
    name = f"{percentile}th percentile"
    band = [(s, *e.interval) for s, e in zip(steps, found, strict=True) if e.interval]
    points = [(s, e.value) for s, e in zip(steps, found, strict=True)]
    series = Series(label=name, index=0, points=points, band=band)
    return curves(name, [series], steps=(steps[0], steps[-1]))


# ---- interventions ------------------------------------------------------------------------------


def temperature(measured: Temperature) -> "alt.LayerChart | None":
    """Fig. 3: accuracy when the forks, or the rest, are decoded at another temperature."""
    found = [
        Trace(
            series=SWEEPS[sweep.varied],
            name=f"{sweep.varied} varied",
            points=[
                _point(
                    p.temperature,
                    p.accuracy,
                    f"{sweep.varied}, temperature {p.temperature:g}: {_share(p.accuracy)}",
                )
                for p in sorted(sweep.points, key=lambda p: p.temperature)
            ],
        )
        for sweep in measured.sweeps
        if sweep.points
    ]
    if not found:
        return None
    points = [p for trace in found for p in trace.points]
    at = sorted({p.x for p in points})
    low, high = reach([v for p in points for v in (p.y, p.low, p.high) if v is not None])
    name = "temperature of the varied part (linear to 0.2, then logarithmic)"
    return traces(
        found,
        Axis(low=0.0, high=max(1.0, *at), title=name, linear=LINEAR_TEMPERATURE, ticks=at),
        Axis(low=low, high=high, share=True),
        label="Accuracy against temperature: " + "; ".join(map(_sweep_in_words, found)),
    )


def _sweep_in_words(trace: Trace) -> str:
    first, last = trace.points[0], trace.points[-1]
    return f"{trace.name} from {percent(first.y)} at {first.x:g} to {percent(last.y)} at {last.x:g}"


def squared_gaps(measured: Branching, *, drawn_again: bool = False) -> "alt.LayerChart | None":
    """How far the expected reward moves when a token is replaced, or is drawn once more."""

    def gap(group: GapGroup) -> Estimate | None:
        return group.resampled_squared_gap if drawn_again else group.squared_gap

    difference = measured.resampled_difference if drawn_again else measured.difference
    rows = [
        ForestRow(kind, estimate, series_colour(series), f"{group.positions} positions")
        for (kind, series), group in zip(KINDS, (measured.high, measured.low), strict=True)
        if (estimate := gap(group)) is not None
    ]
    if difference is not None:
        rows.append(ForestRow("high − low", difference, INK))
    what = "drawn again" if drawn_again else "replaced"
    label = f"Squared gap of the expected reward of tokens that are {what}"
    return forest(rows, title="squared gap of the expected reward", label=label) if rows else None


def gaps(measured: Branching) -> "alt.LayerChart":
    """A dot for each measured position at the change of its expected reward."""
    found = [
        Strip(
            f"{kind} entropy",
            series_colour(series),
            [(gap_of(r), _told(r)) for r in measured.replacements if r.kind == kind],
        )
        for kind, series in KINDS
    ]
    return strips(
        found,
        title="expected reward with the alternative − with the token",
        label=f"Change of the expected reward at {len(measured.replacements)} positions, "
        "by kind of position",
    )


def gap_of(replaced: Replacement) -> float:
    """How far the expected reward moves."""
    return replaced.value_alternative - replaced.value_kept


def place_of(replaced: Replacement) -> str:
    """Where it was measured, in words."""
    return f"{replaced.prompt_id}, answer {replaced.sample}, position {replaced.position}"


def _told(r: Replacement) -> str:
    return (
        f"{shown(r.token)} → {shown(r.alternative)}: {number(r.value_kept)} → "
        f"{number(r.value_alternative)}, {number(r.entropy)} nats ({place_of(r)})"
    )


# ---- files --------------------------------------------------------------------------------------


def draw_figures(root: Path, format_: str) -> list[Path]:
    """Draw what a run directory has results of, as ``root``/figures/*.FORMAT.

    Returns:
        The files.

    Raises:
        RunError: there is nothing to draw, a result is not what it should be, or the directory is
            of another version.
        ConfigError: no such format.
    """
    if format_ not in FORMATS:
        raise ConfigError(f"--format {format_!r}: expected {', '.join(FORMATS)}")
    check_schema(root)
    paths = []
    for name, chart in _charts(root):
        if chart is not None:
            paths.append(root / "figures" / f"{name}.{format_}")
            save(chart, paths[-1])
    if not paths:
        raise RunError(f"{root} holds nothing to draw: run forkpoint analyze first")
    return paths


DRAWN: tuple[tuple[Any, dict[str, Callable[[Any], Any]]], ...] = (
    (Pattern, {"entropy_histogram": entropy_histogram, "entropy_by_position": entropy_by_position}),
    (Dynamics, {"overlap": overlap, "change_by_bin": change_by_bin}),
    (Temperature, {"temperature": temperature}),
    (Branching, {"branching": squared_gaps, "branching_positions": gaps}),
    (
        Ablation,
        {
            "ablation_differences": ablation.differences,
            "ablation_steps": ablation.accuracy_by_steps,
            "ablation_operations": ablation.accuracy_by_operations,
            "ablation_entropy": ablation.entropy_by_steps,
        },
    ),
)
"""Which result is drawn how, by the files' names."""


def _charts(root: Path) -> Iterator[tuple[str, Any]]:
    """(file name, chart) of all results there are; None where a result holds nothing to draw."""
    for model, drawings in DRAWN:
        result = find_result(root, model)
        if result is not None:
            yield from ((name, draw(result)) for name, draw in drawings.items())
    path = RunDirectory(root).words_parquet
    if path.exists():
        for name, words in zip(("highest", "lowest"), ends_of(read_words(path)), strict=True):
            yield f"words_{name}", word_cloud(words, name)
    dynamics = find_result(root, Dynamics)
    if dynamics is not None:
        for percentile in dynamics.checkpoints[-1].percentiles:
            yield f"percentile_{percentile}", entropy_at_percentile(dynamics, percentile)
