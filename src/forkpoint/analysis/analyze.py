"""``forkpoint analyze``: completions sampled or read, teacher-forced, stored, summed up.

However completions came about, their tokens are scored by ``score_completions``: one path, so that
a model's own samples and somebody else's file can be compared.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from forkpoint.analysis.rescoring import rescored
from forkpoint.analysis.sources import Columns, CompletionFile
from forkpoint.analysis.summary import SummarySettings, summarise
from forkpoint.config import RunConfig
from forkpoint.errors import ConfigError, Interrupted
from forkpoint.evaluation.held_out import numbered_problems, prompt_parts, sample_answers
from forkpoint.policy.load import LoadedModel, load_model
from forkpoint.runs import RunDirectory
from forkpoint.runs.atomic import write_text
from forkpoint.runs.completions import (
    StoredCompletion,
    part_file,
    part_files,
    write_completions,
)
from forkpoint.runs.results import Pattern, write_result
from forkpoint.runs.resume import Pieces
from forkpoint.runs.rows import bytes_of
from forkpoint.runs.vocabulary import ensure_vocabulary
from forkpoint.sampling import SamplingParts, build_sampling

WHOLE = "whole"
"""A file that says how many parts there are, once all are."""
PART_COMPLETIONS = 256
"""Completions of a part that is read from a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisSettings:
    """What ``analyze`` needs besides a run's configuration."""

    top_k: int = 5
    """Alternatives stored with each token."""
    rollouts: Path | None = None
    """Completions that exist already; None: sample ``evaluation.samples`` of each of
    ``evaluation.problems`` held-out problems."""
    columns: Columns = field(default_factory=Columns)
    summary: SummarySettings = field(default_factory=SummarySettings)


Part: TypeAlias = Callable[[], list[StoredCompletion]]
"""Makes a part's completions: nothing is sampled for a part that is there already."""


def analyze(
    config: RunConfig,
    root: Path,
    settings: AnalysisSettings,
    should_stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda text: None,
) -> Pattern:
    """Fill ``root``/completions/analysis and write its pattern; see docs/analysis.md.

    Started again with the same settings it goes on after the last whole part; ``summary`` settings
    may differ, the tokens are the same.

    Args:
        note: gets a line about each part that was stored, and about what was left out.

    Raises:
        ForkpointError: see errors.py; ``Interrupted`` when ``should_stop()`` turned true.
    """
    _check(settings)
    with ExitStack() as stack:
        directory = stack.enter_context(RunDirectory.claim(root))
        described = describe(config, root, settings)
        pieces = Pieces.open(directory.completions_dir("analysis"), described)
        if not _finished(pieces.folder):
            filler = _Filler(directory, pieces.folder, config, settings, should_stop, note)
            loaded, parts, of = filler.open(stack)
            ensure_vocabulary(directory.vocabulary_parquet, loaded.tokenizer)
            filler.fill(loaded, parts, of)
            write_text(pieces.path(WHOLE), f"{len(part_files(pieces.folder))}\n")
        pattern = summarise(
            part_files(pieces.folder), directory.words_parquet, described, settings.summary
        )
        write_result(root, pattern)
        return pattern


def _check(settings: AnalysisSettings) -> None:
    keep = settings.summary.keep_fraction
    if not 0 < keep <= 1:
        raise ConfigError(f"--keep-fraction {keep:g} is not in (0, 1]")
    if settings.top_k < 0 or settings.summary.min_count < 0:
        raise ConfigError("--top-k and --min-count must be 0 at least")


def describe(config: RunConfig, root: Path, settings: AnalysisSettings) -> dict[str, Any]:
    """Everything that decides what is stored of the tokens."""
    path = settings.rollouts
    return {
        "source": "sampled" if path is None else named_from(path, root),
        "source_bytes": bytes_of(path),
        "columns": {
            name: getattr(settings.columns, name) for name in ("prompt", "completion", "reward")
        },
        "top_k": settings.top_k,
        "config": config.model_dump(mode="json"),
    }


def named_from(path: Path, root: Path) -> str:
    """The path, from the run's directory if it is in it, so that the folder can be moved."""
    whole = path.resolve()
    inside = whole.is_relative_to(root.resolve())
    return str(whole.relative_to(root.resolve()) if inside else whole)


def _finished(folder: Path) -> bool:
    """Whether every part is there: how many they are is written after the last one."""
    parts, whole = part_files(folder), folder / WHOLE
    numbered = parts == [part_file(folder, number) for number in range(len(parts))]
    return numbered and whole.exists() and whole.read_text().strip() == str(len(parts))


@dataclass(frozen=True, slots=True)
class _Filler:
    """Makes the parts that are not there yet."""

    directory: RunDirectory
    folder: Path
    config: RunConfig
    settings: AnalysisSettings
    should_stop: Callable[[], bool]
    note: Callable[[str], None]

    def open(self, stack: ExitStack) -> tuple[LoadedModel, Iterable[Part], int | None]:
        """The model, the parts, and how many they are if that is known."""
        if self.settings.rollouts is None:
            sampling = stack.enter_context(closing(build_sampling(self.config)))
            parts = self._sampled(sampling)
            return sampling.loaded, parts, len(parts)
        loaded = load_model(self.config.model)
        source = CompletionFile(self.settings.rollouts, self.settings.columns, loaded)
        return loaded, self._read(source), None

    def _sampled(self, sampling: SamplingParts) -> list[Part]:
        """Held-out problems, cut so that a part's completions are sampled side by side."""
        problems = numbered_problems(sampling, self.config)
        return [
            lambda some=some: sample_answers(sampling, self.config, some, self.should_stop)
            for some in prompt_parts(sampling, self.config, problems)
        ]

    def _read(self, source: CompletionFile) -> Iterator[Part]:
        """A file's completions, ``PART_COMPLETIONS`` at a time."""
        rows = iter(source)
        while part := list(islice(rows, PART_COMPLETIONS)):
            yield lambda part=part: part
        for line in source.notes():
            self.note(line)

    def fill(self, loaded: LoadedModel, parts: Iterable[Part], of: int | None) -> None:
        """Sample, score and write part by part."""
        for number, part in enumerate(parts):
            if self.should_stop():
                raise Interrupted("stopped")
            path = part_file(self.folder, number)
            if not path.exists():
                started = time.perf_counter()
                rows = part()
                top_k, should_stop = self.settings.top_k, self.should_stop
                write_completions(
                    path,
                    rescored(loaded, rows, self.config, top_k=top_k, should_stop=should_stop),
                )
                self.directory.describe(self.config.model_dump_json(indent=2))
                tokens = sum(len(row.completion) for row in rows)
                which = f"part {number + 1}" + ("" if of is None else f"/{of}")
                rate = tokens / max(time.perf_counter() - started, 1e-9)
                self.note(f"{which}  {tokens:,} tokens  {rate:,.0f} tokens/s")
