"""The section on where entropy is: a Pattern as figures."""

from collections.abc import Iterator
from typing import Any

from forkpoint.figures import paper
from forkpoint.figures.render import svg_for_page
from forkpoint.figures.text import ends, number, percent, visible
from forkpoint.report.data import RunData
from forkpoint.report.finding import what_was_analysed
from forkpoint.report.intervals import Intervals, Row, intervals
from forkpoint.runs.results import ForkTruth, Pattern

INTERRUPTED = (
    "results/{} is not there: the measurement was interrupted. "
    "The same command goes on where it stopped."
)


def analysis_section(run: RunData) -> dict[str, Any] | None:
    """The figures; ``empty`` says in a sentence why there are none. None: nothing was analysed."""
    pattern = run.result(Pattern)
    if pattern is None:
        return {"empty": INTERRUPTED.format(Pattern.file)} if run.began(Pattern) else None
    if pattern.tokens == 0:
        return {"empty": "The analysis holds 0 tokens, so there is nothing to draw."}
    position, length = paper.entropy_by_position(pattern), paper.entropy_by_length(pattern)
    return {
        "empty": None,
        "sentence": visible(what_was_analysed(pattern)) if run.trained else None,
        "histogram": svg_for_page(paper.entropy_histogram(pattern)),
        "percentiles": svg_for_page(paper.entropy_percentiles(pattern)),
        "facts": list(_facts(pattern)),
        "by_position": position and svg_for_page(position),
        "by_length": length and svg_for_page(length),
        "by_correctness": _by_correctness(pattern),
        "truth": list(_truth(pattern.lab)) if pattern.lab else [],
    }


def _by_correctness(pattern: Pattern) -> Intervals | None:
    rows = [
        Row(g.label, g.mean_entropy, cells=(f"{g.completions:,}", f"{g.tokens:,}"))
        for g in pattern.by_correctness
    ]
    return intervals(rows, most=3) if rows else None


def _facts(pattern: Pattern) -> Iterator[tuple[str, str]]:
    """(number, what it is), the large figures above the histogram."""
    yield f"{number(pattern.mean_entropy)} nats", "mean entropy"
    yield percent(pattern.share_below_0_01), "of tokens below 0.01 nats"
    yield (
        percent(pattern.entropy_share_of_top),
        f"of all entropy is in the top {100 * pattern.keep_fraction:.3g}\u00a0% of tokens",
    )
    kept = percent(pattern.kept_fraction)
    yield f"{number(pattern.entropy_threshold)} nats", f"threshold; {kept} of tokens reach it"
    right = pattern.accuracy
    if right is not None:
        between = f" {ends(*right.interval)}" if right.interval else ""
        yield percent(right.value), f"right{between}, n = {right.n}"


def _truth(truth: ForkTruth) -> Iterator[tuple[str, str, str]]:
    """(value, name, what it is): what only the laboratory world can know."""
    yield percent(truth.precision), "precision", "share of the top tokens that are true decisions"
    yield percent(truth.recall), "recall", "share of the true decisions that are top tokens"
    chance = "over all cuts; chance: the next line"
    yield percent(truth.average_precision), "average precision", chance
    yield percent(truth.fork_share), "true decisions", "share of all tokens"
    for value, name, meaning in (
        (truth.fork_entropy_true, "entropy of true decisions", "analytic, mean in nats"),
        (truth.fork_entropy_measured, "the same", "measured, mean in nats"),
        (truth.forced_entropy_measured, "entropy of forced tokens", "measured; analytic: 0 nats"),
        (truth.entropy_error, "entropy error", "mean |measured − analytic|, nats"),
    ):
        if value is not None:
            yield number(value), name, meaning
