"""Problems from a JSONL or parquet file, or a data set of the hub."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from forkpoint.config.stages import DataTaskConfig
from forkpoint.errors import ConfigError, DataError
from forkpoint.hub import prepare_hub
from forkpoint.randomness import stream
from forkpoint.runs.rows import SUFFIXES, short
from forkpoint.runs.rows import read_rows as read_file
from forkpoint.tasks.base import Task, ask, require_column
from forkpoint.types import Message, Problem

Row = Mapping[str, Any]

HELD_OUT_SPLIT = "test"

PLACES = re.compile(r"\{(prompt|instruction)\}")


class DataTask(Task):
    """Rows in a new seeded order every epoch; every column goes to the reward functions."""

    def __init__(self, config: DataTaskConfig) -> None:
        """
        Raises:
            ConfigError: a template that drops the prompt or the instruction; held-out rows that are
                the training rows.
            DataError: no such file, unreadable or empty data, no prompt column.
        """
        if "{prompt}" not in config.template:
            raise ConfigError(
                f"task.template = {config.template!r} has no place for the {{prompt}}"
            )
        if config.instruction and "{instruction}" not in config.template:
            raise ConfigError(
                f"task.template = {config.template!r} has no place for the {{instruction}}, which "
                f"is {config.instruction!r}"
            )
        held_out = held_out_source(config)
        self._config = config
        self._rows = read_rows(config.path, config.subset, config.split)
        self._epoch, self._order = -1, []
        """The epoch of the last problem, and its order of rows."""
        self.count = len(self._rows)
        self.digest = _digest(self._rows)
        self.columns = frozenset(self._rows[0])
        require_column(self.columns, config.prompt_column, "task.prompt_column", config.path)
        if config.id_column is not None:
            require_column(self.columns, config.id_column, "task.id_column", config.path)
        self._held_out: list[Row] = []
        if held_out is not None:
            self._held_out = read_rows(*held_out)
            names = frozenset(self._held_out[0])
            require_column(names, config.prompt_column, "task.prompt_column", held_out.path)
            if config.id_column is not None:
                _check_ids(self._held_out, config.id_column, held_out.path)
            self.notes = _overlap(self._rows, self._held_out, config)

    def problem(self, serial: int) -> Problem:
        """See ``Task.problem``."""
        epoch, place = divmod(serial, len(self._rows))
        if self._epoch != epoch:
            generator = stream(self._config.seed, "data order", epoch)
            self._epoch, self._order = epoch, generator.permutation(len(self._rows)).tolist()
        return self._problem(self._config.path, self._rows, self._order[place])

    def held_out(self, count: int, seed: int) -> list[Problem]:
        """The first ``count`` of ``task.eval_path``, in file order; ``seed`` changes nothing."""
        path = self._config.eval_path
        if path is None:
            raise DataError(
                "there are no held-out problems: name some with task.eval_path, or set "
                "evaluation.every = 0"
            )
        rows = self._held_out
        return [self._problem(path, rows, index) for index in range(min(count, len(rows)))]

    def _problem(self, path: str, rows: Sequence[Row], index: int) -> Problem:
        config, row = self._config, rows[index]
        identity = str(index if config.id_column is None else row.get(config.id_column))
        prompt = row.get(config.prompt_column)
        if isinstance(prompt, str) and prompt:
            filled = {"prompt": prompt, "instruction": config.instruction}
            text = PLACES.sub(lambda place: filled[place[1]], config.template)
            prompt = ask(_encodable(text), chat=config.chat)
        elif (messages := _chat(prompt)) is not None:
            prompt = messages
        else:
            raise DataError(
                f"{path}, row {index}: column {config.prompt_column!r} holds {short(prompt, 80)}; "
                "expected text, or a list of messages with role and content, which are text"
            )
        columns = {k: v for k, v in row.items() if k != config.prompt_column}
        return Problem(id=identity, prompt=prompt, columns=columns)


class Source(NamedTuple):
    """Which rows: a file, or a hub data set's subset and split."""

    path: str
    subset: str | None
    split: str


def held_out_source(config: DataTaskConfig) -> Source | None:
    """Where the held-out rows are; None if there are none.

    Raises:
        ConfigError: they are the rows that are trained on, or nobody says of which data set
            ``eval_subset`` and ``eval_split`` are.
    """
    if config.eval_path is None:
        if config.eval_subset is not None or config.eval_split is not None:
            raise ConfigError("task.eval_subset and task.eval_split are read with task.eval_path")
        return None
    subset = config.eval_subset
    if subset is None and config.eval_path == config.path:
        subset = config.subset
    held_out = Source(config.eval_path, subset, config.eval_split or HELD_OUT_SPLIT)
    a, b = (Path(path).expanduser() for path in (config.path, held_out.path))
    if a.is_file() and b.is_file():
        if a.samefile(b):
            raise ConfigError(
                f"task.path and task.eval_path are the same file, {b}: what is trained on cannot "
                "be held out; put some rows into a file of their own"
            )
    elif held_out == Source(config.path, config.subset, config.split):
        raise ConfigError(
            f"task.path and task.eval_path are the same rows, split {held_out.split!r} of {b}: "
            "what is trained on cannot be held out; set another task.eval_split"
        )
    return held_out


def _check_ids(rows: Sequence[Row], name: str, path: str) -> None:
    """Held-out problems of one id would count as one.

    Raises:
        DataError: a row has none, or that of another.
    """
    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        identity = row.get(name)
        if identity is None:
            raise DataError(f"{path}, row {index}: column {name!r}, task.id_column, is empty")
        if (other := first.setdefault(str(identity), index)) != index:
            raise DataError(
                f"{path}, rows {other} and {index}: column {name!r}, task.id_column, holds "
                f"{short(identity, 40)} in both"
            )


def _digest(rows: Sequence[Row]) -> str:
    found = hashlib.blake2b(digest_size=8)
    for row in rows:
        found.update(json.dumps(dict(row), sort_keys=True, default=str).encode())
    return found.hexdigest()


def _overlap(
    rows: Sequence[Row], held_out: Sequence[Row], config: DataTaskConfig
) -> tuple[str, ...]:
    """A line about held-out prompts that are trained on as well; nothing if there are none.

    Raises:
        DataError: all of them are.
    """
    trained = {_key(row.get(config.prompt_column)) for row in rows}
    held = {_key(row.get(config.prompt_column)) for row in held_out}
    if not (shared := len(held & trained)):
        return ()
    if shared == len(held):
        raise DataError(
            f"every prompt of task.eval_path = {config.eval_path!r} is one of task.path as well: "
            "what is trained on cannot be held out"
        )
    return (
        f"{shared} of {len(held)} held-out prompts are trained on as well: the accuracy on them "
        "is not of unseen problems",
    )


def _key(prompt: Any) -> bytes:
    """Equal for equal prompts."""
    text = json.dumps(prompt, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def read_rows(path: str, subset: str | None, split: str) -> list[Row]:
    """All rows as mappings; the format goes by the name's end, anything else is a hub id.

    Raises:
        DataError: no such file, broken data, no rows.
    """
    if path.endswith(SUFFIXES):
        return [row.values for row in read_file(Path(path).expanduser())]
    if Path(path).exists() or path.startswith((".", "/", "~")):
        raise DataError(f"{path}: expected a .jsonl or .parquet file, or the id of a hub data set")
    rows = read_hub(path, subset, split, f"task.path = {path!r}")
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def read_hub(name: str, subset: str | None, split: str, where: str) -> list[Row]:
    """All rows of a data set of the hub.

    Args:
        where: who names it, for the message.

    Raises:
        ConfigError: the library is not installed. DataError: the data set cannot be loaded.
    """
    prepare_hub()
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"{where} is not a .jsonl or .parquet file; to load it from the hub: "
            "pip install 'forkpoint[hub]'"
        ) from error
    try:
        return [dict(row) for row in datasets.load_dataset(name, subset, split=split)]
    except Exception as error:  # the library raises a dozen kinds; all mean the same to the user
        raise DataError(f"{where}: the hub data set cannot be loaded: {error}") from error


def _chat(prompt: Any) -> tuple[Message, ...] | None:
    """A list of messages with role and content, or None if it is something else."""
    if not isinstance(prompt, list) or not prompt:
        return None
    messages: list[Message] = []
    for message in prompt:
        match message:
            case {"role": str(role), "content": str(content)}:
                messages.append({"role": role, "content": _encodable(content)})
            case _:
                return None
    return tuple(messages)


def _encodable(text: str) -> str:
    """With U+FFFD for halves of surrogate pairs: JSON can spell them, no tokenizer reads them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
