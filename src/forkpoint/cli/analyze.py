"""``forkpoint analyze``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from forkpoint.cli.options import Overrides, note, shorthands, title
from forkpoint.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from rich.console import Console

    from forkpoint.analysis.analyze import AnalysisSettings
    from forkpoint.config import RunConfig
    from forkpoint.runs.results import Pattern

PROBLEMS = 50
SAMPLES = 8
"""Without --problems and --samples, where the recipe says nothing either."""

LISTED = 12
"""Words printed of each end."""


def analyze(
    *,
    run_dir: Path,
    model: str | None = None,
    task: str | None = None,
    rollouts: Path | None = None,
    recipe: Path | None = None,
    samples: Annotated[int | None, Parameter(help="Completions per problem.")] = None,
    problems: Annotated[int | None, Parameter(help="How many held-out problems.")] = None,
    keep_fraction: float = 0.2,
    min_count: int = 100,
    top_k: int = 5,
    prompt_column: str | None = None,
    completion_column: str | None = None,
    reward_column: str | None = None,
    format_: Annotated[Literal["svg", "pdf", "png"] | None, Parameter(name="--format")] = None,
    set_: Overrides = None,
) -> int:
    """See which tokens of a model's chains of thought are forks.

    Samples completions (or reads some), and stores entropy, log-probability and alternatives of
    each token in RUN-DIR/completions. The same command again goes on where it was stopped.

    Parameters
    ----------
    run_dir
        Where the analysis goes; a run's folder, or a new one.
    model
        ``lab``, a folder (a run's checkpoint is one) or a hub id.
    task
        ``lab``, or the name of a reasoning-gym task such as chain_sum.
    rollouts
        Completions that exist already: a .jsonl or .parquet file, or a folder of them, of
        forkpoint, TRL, verl, prime-rl, lm-eval, or with columns prompt and completion, or text.
    recipe
        A TOML file for the task, its rewards and how to sample; without one the laboratory.
    keep_fraction
        The share of tokens of highest entropy that count as forks.
    min_count
        List words that occur more often than this.
    top_k
        Most likely tokens stored with each token.
    prompt_column
        The column of --rollouts with the prompt.
    completion_column
        The column of --rollouts with the completion.
    reward_column
        The column of --rollouts with the reward.
    format_
        Also draw figures: ``svg``, ``pdf`` or ``png``.
    """
    from forkpoint.analysis.analyze import AnalysisSettings
    from forkpoint.analysis.sources import Columns
    from forkpoint.analysis.summary import SummarySettings

    if rollouts is not None and (samples is not None or problems is not None or task is not None):
        raise ConfigError("--rollouts are completions already: no --task, --problems, --samples")
    config = analysis_config(recipe, model, task, problems, samples, set_ or [])
    settings = AnalysisSettings(
        top_k=top_k,
        rollouts=rollouts,
        columns=Columns(prompt=prompt_column, completion=completion_column, reward=reward_column),
        summary=SummarySettings(keep_fraction=keep_fraction, min_count=min_count),
    )
    return _run(config, run_dir, settings, format_)


def _run(
    config: "RunConfig", run_dir: Path, settings: "AnalysisSettings", format_: str | None
) -> int:
    """Analyse, print, draw; the exit code."""
    from forkpoint.analysis.analyze import analyze as run
    from forkpoint.cli.console import SafeConsole
    from forkpoint.training.stop import StopFlag

    console = SafeConsole()
    with StopFlag() as stop:
        try:
            pattern = run(config, run_dir, settings, observer=Progress(console), should_stop=stop)
        except Interrupted as stopped:
            if stop.signal is None:
                raise
            console.print(f"{stopped}: whole parts are kept, the same command goes on from them")
            return stop.exit_code
    show(console, pattern, run_dir)
    if format_ is not None:
        from forkpoint.analysis.figures import draw_figures

        for path in draw_figures(run_dir, format_):
            console.print(str(path), highlight=False, markup=False)
    return 0


def analysis_config(
    recipe: Path | None,
    model: str | None,
    task: str | None,
    problems: int | None,
    samples: int | None,
    overrides: list[str],
) -> "RunConfig":
    """The configuration of a command that samples held-out problems to look at them."""
    from forkpoint.config import load_config

    config = load_config(recipe, [*shorthands(model, task), *overrides])
    written = config.evaluation.model_fields_set
    chosen: dict[str, int] = {}
    if problems is not None or "problems" not in written:
        chosen["problems"] = PROBLEMS if problems is None else problems
    if samples is not None or "samples" not in written:
        chosen["samples"] = SAMPLES if samples is None else samples
    if min(chosen.values(), default=1) < 1:
        raise ConfigError("--problems and --samples must be 1 at least")
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=chosen)})


class Progress:
    """An ``Observer`` that prints a line a part."""

    def __init__(self, console: "Console") -> None:
        self._console = console

    def part(self, number: int, of: int | None, tokens: int, seconds: float) -> None:
        """See ``analysis.analyze.Observer``."""
        which = f"part {number + 1}" + ("" if of is None else f"/{of}")
        rate = f"{tokens / seconds:,.0f} tokens/s" if seconds else ""
        self.note(f"{which}  {tokens:,} tokens  {rate}".rstrip())

    def note(self, text: str) -> None:
        """See ``analysis.analyze.Observer``."""
        note(self._console, text)


# ---- the summary on a terminal -------------------------------------------------------------------


def show(console: "Console", pattern: "Pattern", root: Path) -> None:
    """The headline numbers and the words of both ends."""
    from forkpoint.analysis.words import read_words
    from forkpoint.runs import RunDirectory

    title(console, root)
    for line in headlines(pattern):
        console.print(line, highlight=False, markup=False)
    words = read_words(RunDirectory(root).words_parquet)
    minimum, listed = pattern.words_min_count, min(LISTED, max(1, len(words) // 2))
    if words:
        heading = f"\nwords that occur more than {minimum} times: {len(words)}"
        console.print(heading, highlight=False)
        console.print(_table(words[:listed], words[::-1][:listed]))
    else:
        console.print(f"no word occurs more than {minimum} times (--min-count)", highlight=False)
    console.print(
        f"look at it with forkpoint report {root}", style="dim", highlight=False, markup=False
    )


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


def _table(top: list[Any], bottom: list[Any]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("highest", "mean", "p90", "count", "lowest", "mean", "p90", "count"):
        table.add_column(name, justify="left" if name.endswith("est") else "right", no_wrap=True)
    for high, low in zip(top, bottom, strict=True):
        table.add_row(*_cells(high), *_cells(low))
    return table


def _cells(word: Any) -> tuple[Any, ...]:
    from rich.text import Text

    return (
        Text(json.dumps(word.text, ensure_ascii=not word.text.isprintable())),
        f"{word.mean:.3f}",
        f"{word.p90:.3f}",
        f"{word.count:,}",
    )
