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
from typing import Any, Protocol, TypeAlias

from forkpoint.analysis.held_out import numbered_problems, sample_answers
from forkpoint.analysis.rows import find_files
from forkpoint.analysis.run_files import check_settings
from forkpoint.analysis.sources import Columns, CompletionFile
from forkpoint.analysis.summary import SummarySettings, summarise
from forkpoint.analysis.text import TokenTexts
from forkpoint.analysis.vocabulary import ensure_vocabulary
from forkpoint.config import RunConfig
from forkpoint.errors import ConfigError, Interrupted
from forkpoint.policy.load import LoadedModel, load_model
from forkpoint.policy.teacher import ScoredCompletion, score_completions
from forkpoint.runs import RunDirectory
from forkpoint.runs.atomic import write_json
from forkpoint.runs.tokens import CompletionRow, TokenColumns, TokenStore
from forkpoint.sampling import SamplingParts, build_sampling

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


class Observer(Protocol):
    """Told how an analysis goes."""

    def part(self, number: int, of: int | None, tokens: int, seconds: float) -> None:
        """A part of the store was written."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know."""
        ...


Part: TypeAlias = Callable[[], list[CompletionRow]]
"""Makes a part's completions: nothing is sampled for a part that is there already."""


def analyze(
    config: RunConfig,
    root: Path,
    settings: AnalysisSettings,
    *,
    observer: Observer,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Fill ``root``/analysis and return its summary; see docs/analysis.md.

    Started again with the same settings it goes on after the last whole part; ``summary`` settings
    may differ, the tokens are the same.

    Raises:
        ForkpointError: see errors.py; ``Interrupted`` when ``should_stop()`` turned true.
    """
    _check(settings)
    with ExitStack() as stack:
        directory = stack.enter_context(RunDirectory.claim(root))
        described = describe(config, root, settings)
        store = TokenStore(directory.analysis_dir)
        settings_json = store.root / "config.json"
        if store.parts():
            check_settings(settings_json, described)
        if not _finished(store):
            filler = _Filler(directory, store, config, settings, observer, should_stop)
            loaded, parts, of = filler.open(stack)
            if not store.parts():  # a start that failed may have left others
                write_json(settings_json, described)
            ensure_vocabulary(store.root, loaded.tokenizer)
            filler.fill(loaded, parts, of)
        return summarise(store, described, settings.summary)


def _check(settings: AnalysisSettings) -> None:
    keep = settings.summary.keep_fraction
    if not 0 < keep <= 1:
        raise ConfigError(f"--keep-fraction {keep:g} is not in (0, 1]")
    if settings.top_k < 0 or settings.summary.min_count < 0:
        raise ConfigError("--top-k and --min-count must be 0 at least")


def describe(config: RunConfig, root: Path, settings: AnalysisSettings) -> dict[str, Any]:
    """analysis/config.json: everything that decides the token store."""
    path = settings.rollouts
    return {
        "schema": 1,
        "source": "sampled" if path is None else named_from(path, root),
        "source_bytes": None if path is None else sum(p.stat().st_size for p in find_files(path)),
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


# ---- parts ---------------------------------------------------------------------------------------


def sampled_parts(
    parts: SamplingParts, config: RunConfig, should_stop: Callable[[], bool]
) -> list[Part]:
    """Held-out problems, cut so that a part's completions are sampled side by side."""
    prompts = {n: parts.prompter(p) for n, p in numbered_problems(parts, config).items()}
    numbers = list(prompts)
    size = max(1, config.rollout.batch_sequences // config.evaluation.samples)

    def make(first: int) -> list[CompletionRow]:
        some = {n: prompts[n] for n in numbers[first : first + size]}
        return sample_answers(parts, config, some, should_stop)

    return [lambda first=first: make(first) for first in range(0, len(numbers), size)]


def read_parts(source: CompletionFile) -> Iterator[Part]:
    """A file's completions, ``PART_COMPLETIONS`` at a time."""
    rows = iter(source)
    while part := list(islice(rows, PART_COMPLETIONS)):
        yield lambda part=part: part


# ---- the store -----------------------------------------------------------------------------------


def _finished(store: TokenStore) -> bool:
    """Whether every part is there: the summary is written after the last one."""
    parts = store.parts()
    return (store.root / "summary.json").exists() and parts == list(range(len(parts)))


@dataclass(slots=True)
class _Filler:
    """Makes the parts that are not there yet."""

    directory: RunDirectory
    store: TokenStore
    config: RunConfig
    settings: AnalysisSettings
    observer: Observer
    should_stop: Callable[[], bool]
    source: CompletionFile | None = None

    def open(self, stack: ExitStack) -> tuple[LoadedModel, Iterable[Part], int | None]:
        """The model, the parts, and how many they are if that is known."""
        if self.settings.rollouts is None:
            sampling = stack.enter_context(closing(build_sampling(self.config)))
            parts = sampled_parts(sampling, self.config, self.should_stop)
            return sampling.loaded, parts, len(parts)
        loaded = load_model(self.config.model)
        self.source = CompletionFile(self.settings.rollouts, self.settings.columns, loaded)
        return loaded, read_parts(self.source), None

    def fill(self, loaded: LoadedModel, parts: Iterable[Part], of: int | None) -> None:
        """Sample, score and write part by part."""
        run, top_k = self.directory.root.resolve().name, self.settings.top_k
        writer = _Writer(self.store, run, loaded, self.config, top_k, self.should_stop)
        for number, part in enumerate(parts):
            if self.should_stop():
                raise Interrupted("stopped")
            if not self.store.has(number):
                started = time.perf_counter()
                tokens = writer.write(number, part())
                self.directory.describe(self.config.model_dump_json(indent=2))
                self.observer.part(number, of, tokens, time.perf_counter() - started)
        for line in self.source.notes() if self.source is not None else ():
            self.observer.note(line)


class _Writer:
    """Scores a part and writes it as it goes."""

    def __init__(
        self,
        store: TokenStore,
        run: str,
        loaded: LoadedModel,
        config: RunConfig,
        top_k: int,
        should_stop: Callable[[], bool],
    ) -> None:
        self._store, self._run, self._loaded = store, run, loaded
        self._temperature = config.rollout.temperature
        self._max_tokens = config.training.micro_batch_tokens
        self._top_k, self._should_stop = top_k, should_stop
        self._texts = TokenTexts(loaded.tokenizer)

    def write(self, number: int, rows: list[CompletionRow]) -> int:
        """Write one part; returns its tokens."""
        self._store.write(number, self._run, rows, self._columns(rows))
        return sum(row.tokens for row in rows)

    def _columns(self, rows: list[CompletionRow]) -> Iterator[TokenColumns]:
        scored = score_completions(
            self._loaded.model,
            ((row.prompt_token_ids, row.token_ids) for row in rows),
            temperature=self._temperature,
            top_k=self._top_k,
            max_tokens=self._max_tokens,
        )
        for row, one in zip(rows, scored, strict=True):
            if self._should_stop():
                raise Interrupted("stopped while scoring")
            yield self._column(row, one)

    def _column(self, row: CompletionRow, scored: ScoredCompletion) -> TokenColumns:
        return TokenColumns(
            texts=self._texts(row.token_ids),
            logprobs_T=scored.logprobs_T,
            entropies_T=scored.entropies_T,
            top_ids_TK=scored.top_ids_TK,
            top_logprobs_TK=scored.top_logprobs_TK,
        )
