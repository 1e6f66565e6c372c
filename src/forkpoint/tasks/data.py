"""Problems from a JSONL or parquet file, or a data set of the hub."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forkpoint.config.stages import DataTaskConfig
from forkpoint.errors import ConfigError, DataError
from forkpoint.randomness import stream
from forkpoint.tasks.asking import ask
from forkpoint.types import Message, Problem

Row = Mapping[str, Any]

PLACES = re.compile(r"\{(prompt|instruction)\}")


class DataTask:
    """Rows in a new seeded order every epoch; every column goes to the reward functions."""

    verifier = None

    def __init__(self, config: DataTaskConfig) -> None:
        """
        Raises:
            ConfigError: a template that drops the prompt or the instruction.
            DataError: no such file, unreadable or empty data, no prompt column.
        """
        _check_template(config)
        self._config = config
        self._rows = read_rows(config.path, config.subset, config.split)
        self.columns = frozenset(self._rows[0])
        _require(self.columns, config.prompt_column, "task.prompt_column", config.path)
        if config.id_column is not None:
            _require(self.columns, config.id_column, "task.id_column", config.path)

    def problem(self, serial: int) -> Problem:
        """See ``Task.problem``."""
        epoch, place = divmod(serial, len(self._rows))
        order = stream(self._config.seed, "data order", epoch).permutation(len(self._rows))
        return self._problem(self._config.path, self._rows, int(order[place]))

    def held_out(self, count: int, seed: int) -> list[Problem]:
        """The first ``count`` of ``task.eval_path``, in file order; ``seed`` changes nothing."""
        path = self._config.eval_path
        if path is None:
            raise DataError(
                "there are no held-out problems: name some with task.eval_path, or set "
                "evaluation.every = 0"
            )
        rows = read_rows(path, self._config.subset, self._config.split)
        _require(frozenset(rows[0]), self._config.prompt_column, "task.prompt_column", path)
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
                f"{path}, row {index}: column {config.prompt_column!r} holds {_short(prompt)}; "
                "expected text, or a list of messages with role and content, which are text"
            )
        columns = {k: v for k, v in row.items() if k != config.prompt_column}
        return Problem(id=identity, prompt=prompt, columns=columns)


def read_rows(path: str, subset: str | None, split: str) -> list[Row]:
    """Rows as mappings; the format goes by the name's end, anything else is a hub id.

    Raises:
        DataError: no such file, broken data, no rows.
    """
    if path.endswith((".jsonl", ".json")):
        rows = _read_jsonl(Path(path).expanduser())
    elif path.endswith(".parquet"):
        rows = _read_parquet(Path(path).expanduser())
    elif Path(path).exists() or path.startswith((".", "/", "~")):
        raise DataError(f"{path}: expected a .jsonl or .parquet file, or the id of a hub data set")
    else:
        rows = _read_hub(path, subset, split)
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def _read_jsonl(path: Path) -> list[Row]:
    rows: list[Row] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise DataError(_no_file(path, error)) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number}: expected an object with columns, got {_short(row)}"
            )
        rows.append(row)
    return rows


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except FileNotFoundError as error:
        raise DataError(_no_file(path, error)) from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error


def _read_hub(name: str, subset: str | None, split: str) -> list[Row]:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"task.path = {name!r} is not a .jsonl or .parquet file; to load it from the hub: "
            "pip install 'forkpoint[hub]'"
        ) from error
    try:
        return [dict(row) for row in datasets.load_dataset(name, subset, split=split)]
    except Exception as error:  # the library raises a dozen kinds; all mean the same to the user
        raise DataError(
            f"task.path = {name!r}: the hub data set cannot be loaded: {error}"
        ) from error


def _no_file(path: Path, error: OSError) -> str:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else ""
    reason = (error.strerror or error) if path.exists() else "there is no such file"
    return f"cannot read {path}: {reason}{hint}"


def _require(columns: frozenset[str], name: str, key: str, path: str) -> None:
    if name in columns:
        return
    near = difflib.get_close_matches(name, columns, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(
        f"{path} has no column {name!r} ({key}); it has {', '.join(sorted(columns))}{hint}"
    )


def _check_template(config: DataTaskConfig) -> None:
    if "{prompt}" not in config.template:
        raise ConfigError(f"task.template = {config.template!r} has no place for the {{prompt}}")
    if config.instruction and "{instruction}" not in config.template:
        raise ConfigError(
            f"task.template = {config.template!r} has no place for the {{instruction}}, which is "
            f"{config.instruction!r}"
        )


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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}.."
