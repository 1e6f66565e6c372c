"""``forkpoint analyze``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter
from rich.text import Text

from forkpoint.cli.options import Recipe, SampledModel
from forkpoint.cli.terminal import SafeConsole, table
from forkpoint.errors import ConfigError

if TYPE_CHECKING:
    from forkpoint.runs.results import Pattern

LISTED = 12
"""Words printed of each end."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Existing:
    """Completions that are there already, and the names of their columns."""

    rollouts: Path | None = None
    """Completions that exist already: a .jsonl or .parquet file, or a folder of them, of forkpoint,
    TRL, verl, prime-rl, lm-eval, or with columns prompt and completion, or text."""
    prompt_column: str | None = None
    """The column of --rollouts with the prompt."""
    completion_column: str | None = None
    """The column of --rollouts with the completion."""
    reward_column: str | None = None
    """The column of --rollouts with the reward."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Summarised:
    """What is stored, listed and drawn."""

    keep_fraction: float = 0.2
    """The share of tokens of highest entropy that count as forks."""
    min_count: int = 100
    """List words that occur more often than this."""
    top_k: int = 5
    """Most likely tokens stored with each token."""
    format: Literal["svg", "pdf", "png"] | None = None
    """Also draw figures: ``svg``, ``pdf`` or ``png``."""


def analyze(
    *,
    run_dir: Path,
    recipe: Recipe = None,
    sampled: SampledModel = SampledModel(),  # noqa: B008
    existing: Existing = Existing(),
    summarised: Summarised = Summarised(),
) -> int:
    """See which tokens of a model's chains of thought are forks.

    Samples completions (or reads some), and stores entropy, log-probability and alternatives of
    each token in RUN-DIR/completions. The same command again goes on where it was stopped.

    Parameters
    ----------
    run_dir
        Where the analysis goes; a run's folder, or a new one.
    """
    from forkpoint.analysis.analyze import AnalysisSettings
    from forkpoint.analysis.analyze import analyze as run
    from forkpoint.analysis.sources import Columns
    from forkpoint.analysis.summary import SummarySettings

    if existing.rollouts is not None and sampled.chosen:
        raise ConfigError("--rollouts are completions already: no --task, --problems, --samples")
    columns = (existing.prompt_column, existing.completion_column, existing.reward_column)
    if existing.rollouts is None and any(columns):
        raise ConfigError("the names of columns are read with --rollouts FILE")
    settings = AnalysisSettings(
        top_k=summarised.top_k,
        rollouts=existing.rollouts,
        columns=Columns(
            prompt=existing.prompt_column,
            completion=existing.completion_column,
            reward=existing.reward_column,
        ),
        summary=SummarySettings(
            keep_fraction=summarised.keep_fraction, min_count=summarised.min_count
        ),
    )
    config = sampled.config(recipe, sampled.model)
    console = SafeConsole()
    with console.stoppable("whole parts are kept, the same command goes on") as stop:
        pattern = run(config, run_dir, settings, stop, console.note)
    show(console, pattern, run_dir)
    if summarised.format is not None:
        from forkpoint.figures.paper import draw_figures

        console.say(*draw_figures(run_dir, summarised.format))
    return 0


def show(console: SafeConsole, pattern: "Pattern", root: Path) -> None:
    """The headline numbers and the words of both ends."""
    from forkpoint.analysis.words import read_words
    from forkpoint.runs import RunDirectory

    console.title(root)
    console.say(*headlines(pattern))
    words = read_words(RunDirectory(root).words_parquet)
    minimum, listed = pattern.words_min_count, min(LISTED, max(1, len(words) // 2))
    if words:
        console.say(f"\nwords that occur more than {minimum} times: {len(words)}")
        numbers = ("mean", "p90", "count")
        ends = table("highest", *numbers, "lowest", *numbers, left=("highest", "lowest"))
        for high, low in zip(words[:listed], words[::-1][:listed], strict=True):
            ends.add_row(*_cells(high), *_cells(low))
        console.print(ends)
    else:
        console.say(f"no word occurs more than {minimum} times (--min-count)")
    console.say(f"look at it with forkpoint report {root}", style="dim")


def headlines(pattern: "Pattern") -> list[str]:
    """What there is to say in a few lines; entropies in nats."""
    p = pattern
    lines = [
        f"{p.tokens:,} tokens of {p.completions:,} completions to {p.prompts:,} prompts, "
        f"T = {p.temperature:g}, {p.model}",
        f"entropy: mean {p.mean_entropy:.3f} nats, below 0.01 nats in {p.share_below_0_01:.1%} of "
        "the tokens",
        f"forks: the top {100 * p.keep_fraction:g} % have {p.entropy_threshold:.3f} nats or more "
        f"and hold {p.entropy_share_of_top:.1%} of all entropy",
    ]
    if p.accuracy is not None:
        lines.append(f"accuracy: {p.accuracy.percent()}")
    for group in p.by_correctness:
        mean = group.mean_entropy
        lines.append(f"  {group.label}: mean {mean.value:.3f} nats{mean.ends('{:.3f}')}")
    if (lab := p.lab) is not None and lab.average_precision is not None:
        lines.append(
            f"true forks: precision {lab.precision:.3f}, recall {lab.recall:.3f}, "
            f"average precision {lab.average_precision:.3f}, {lab.fork_share:.1%} of tokens"
        )
    if lab is not None and lab.entropy_error is not None:
        lines.append(
            f"entropy against the analytic one: off by {lab.entropy_error:.4f} nats on average"
        )
    return lines


def _cells(word: Any) -> tuple[Any, ...]:
    return (
        Text(json.dumps(word.text, ensure_ascii=not word.text.isprintable())),
        f"{word.mean:.3f}",
        f"{word.p90:.3f}",
        f"{word.count:,}",
    )
