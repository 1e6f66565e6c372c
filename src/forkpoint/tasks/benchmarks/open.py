"""Opening a benchmark: settings and rows in, problems out."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forkpoint.config.evaluation import BenchmarkConfig
from forkpoint.errors import ConfigError, DataError, ForkpointError
from forkpoint.runs.rows import SUFFIXES
from forkpoint.tasks.base import Task, ask
from forkpoint.tasks.benchmarks.rows import (
    ANSWERS,
    QUESTIONS,
    SOLUTIONS,
    find_column,
    gold_of,
    question_of,
)
from forkpoint.tasks.benchmarks.table import (
    BENCHMARKS,
    INSTRUCTIONS,
    PROMPTS,
    Benchmark,
    HubSet,
    Verifier,
)
from forkpoint.tasks.data import Row, read_hub, read_rows
from forkpoint.tasks.livecodebench import WHOLE
from forkpoint.tasks.livecodebench import problems as code_problems
from forkpoint.types import Problem

OWN = Benchmark(size=0, hub=(), verifier="math")
"""Rows without a name in the table."""

NOT_OF_CODE = ("instruction", "question_column", "answer_column")
"""Settings that LiveCodeBench's layout and its instruction leave no room for."""

PLACES = re.compile(r"\{(question|instruction)\}")


@dataclass(frozen=True, kw_only=True)
class OpenBenchmark(Task):
    """A benchmark with all that decides its result. Made by ``open_benchmark``."""

    name: str
    source: str
    """The file or the hub data set."""
    judge: Verifier
    """The verifier of its answers."""
    prompt: str
    """With ``{question}`` in the place of the question."""
    chat: bool
    temperature: float
    max_new_tokens: int
    samples: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    columns: frozenset[str]

    def problem(self, serial: int) -> Problem:
        """A benchmark has nothing to train on.

        Raises:
            DataError: always.
        """
        raise DataError(f"benchmark {self.name} is for evaluation: there is nothing to train on")

    def held_out(self, count: int, seed: int) -> list[Problem]:
        """The first ``count`` problems; ``seed`` changes nothing."""
        return list(self.problems[:count])


def open_benchmark(config: BenchmarkConfig, folder: str | None = None) -> OpenBenchmark:
    """Read a benchmark's problems.

    Args:
        folder: where its file is; None: on the hub, unless ``config.path`` says where.

    Raises:
        ConfigError: no such benchmark. DataError: its rows cannot be read.
    """
    known = BENCHMARKS.get(config.name)
    if known is None and config.path is None:
        raise ConfigError(f"there is no benchmark {config.name!r}{_near(config.name)}")
    settled = known or OWN
    try:
        source, rows = _read(config, settled, folder)
        verifier = config.verifier or settled.verifier
        style = PROMPTS[config.prompt or settled.prompt]
        if verifier == "code":
            if unread := [name for name in NOT_OF_CODE if getattr(config, name) is not None]:
                raise ConfigError(f"{unread[0]} is not read where verifier = 'code'")
            template = "{question}" + WHOLE
            problems = tuple(code_problems(rows, chat=style.chat)[: config.problems])
        else:
            instruction = config.instruction or INSTRUCTIONS[verifier]
            filled = {"question": "{question}", "instruction": instruction}
            template = PLACES.sub(lambda place: filled[place[1]], style.template)
            problems = _problems(config, rows, verifier, template, style.chat)
    except ForkpointError as error:
        raise type(error)(f"benchmark {config.name}: {error}") from error
    notes = ()
    if known is not None and known.size and len(rows) != known.size:
        notes = (f"{config.name} has {known.size} problems, and {source} has {len(rows)}",)
    return OpenBenchmark(
        name=config.name,
        source=source,
        judge=verifier,
        prompt=template,
        chat=style.chat,
        temperature=config.temperature or settled.temperature,
        max_new_tokens=config.max_new_tokens or settled.max_new_tokens,
        samples=config.samples or settled.samples,
        problems=problems,
        notes=notes,
        columns=frozenset(problems[0].columns),
    )


def _near(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), BENCHMARKS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{hint} There are {', '.join(BENCHMARKS)}, and any JSONL or parquet file by its path"


# ---- rows ----------------------------------------------------------------------------------------


def _read(
    config: BenchmarkConfig, known: Benchmark, folder: str | None
) -> tuple[str, Sequence[Row]]:
    """Where the rows are, and the rows."""
    if config.path is not None:
        split = config.split or "test"
        source = config.path
        if not source.endswith(SUFFIXES):
            source = str(HubSet(config.path, split, config.subset))
        return source, read_rows(config.path, config.subset, split)
    if folder is not None:
        path = find_file(Path(folder).expanduser(), config.name, known)
        return str(path), read_rows(str(path), None, "test")
    faults: list[str] = []
    for hub in known.hub:
        try:
            return str(hub), read_hub(hub.id, hub.subset, hub.split, f"the hub's {hub.id}")
        except DataError as error:
            faults.append(str(error))
    raise DataError(
        f"{'; '.join(faults)}. Where the hub cannot be reached, give its file: --benchmark-dir DIR "
        f"with {config.name}.jsonl (or .json, .parquet) in it, or path in [[evaluation.benchmarks]]"
    )


def find_file(folder: Path, name: str, known: Benchmark) -> Path:
    """The file of a benchmark in a folder: ``aime24.jsonl``, ``AIME_2024.parquet``,
    ``aime24/test.jsonl``, ``AIME24/data/aime24.json``.

    Raises:
        DataError: there is none, or more than one.
    """
    if not folder.is_dir():
        raise DataError(f"--benchmark-dir {folder}: there is no such folder")
    files = sorted(
        path
        for pattern in ("*", "*/*", "*/*/*")
        for path in folder.glob(pattern)
        if path.suffix in SUFFIXES
    )
    names = {_plain(name), *known.files}
    found = [path for path in files if _plain(_title(path)) in names]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(map(str, found))
        raise DataError(f"{listed}: which one? Name it by path in [[evaluation.benchmarks]]")
    there = ", ".join(str(path.relative_to(folder)) for path in files[:20]) or "no such file at all"
    raise DataError(
        f"{folder} has no {name}.jsonl (or .json, .parquet); there is {there}: rename the file, or "
        "name it by path in [[evaluation.benchmarks]]"
    )


def _title(path: Path) -> str:
    """What a file's name says it is; of ``test.jsonl`` the folder's."""
    return path.resolve().parent.name if path.stem == "test" else path.stem


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _problems(
    config: BenchmarkConfig, rows: Sequence[Row], verifier: str, template: str, chat: bool
) -> tuple[Problem, ...]:
    names = frozenset(name for row in rows for name in row)
    question = find_column(names, config.question_column, QUESTIONS, "question_column")
    answer = find_column(names, config.answer_column, ANSWERS + SOLUTIONS, "answer_column")
    problems = []
    for number, row in enumerate(rows[: config.problems]):
        try:
            text = template.replace("{question}", question_of(row.get(question)))
            gold = gold_of(row.get(answer), verifier, worked=answer in SOLUTIONS)
        except DataError as error:
            raise DataError(f"row {number + 1}: {error}") from error
        problems.append(
            Problem(
                id=f"{config.name}/{number + 1}",
                prompt=ask(text, chat=chat),
                columns={"answer": gold},
            )
        )
    return tuple(problems)
