"""completions/**/*.parquet: the one form in which completions are stored, whoever made them.

A row is a completion: sampled in training or evaluation, analysed, or scored again by a checkpoint.
What is known of its tokens stands in list columns of one entry a token (``top_ids`` and
``top_logprobs``: K entries a token, flat). What is not known is null. Files are written and read a
row group of about ``ROW_GROUP_TOKENS`` tokens at a time, so memory does not grow with their size.
The columns are described in docs/run-directory.md.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from forkpoint.errors import RunError
from forkpoint.runs.atomic import write_atomically
from forkpoint.types import Completion, FinishReason, Score

SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("serial", pa.int64()),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("reward", pa.float64()),
        ("verdict", pa.float64()),
        ("reward_parts", pa.map_(pa.string(), pa.float64())),
        ("error", pa.string()),
        ("advantage", pa.float64()),
        ("accepted", pa.bool_()),
        ("token_ids", pa.list_(pa.int32())),
        ("pieces", pa.list_(pa.string())),
        ("logprobs", pa.list_(pa.float32())),
        ("entropies", pa.list_(pa.float32())),
        ("selected", pa.list_(pa.bool_())),
        ("top_ids", pa.list_(pa.int32())),
        ("top_logprobs", pa.list_(pa.float32())),
    ]
)

ROW_GROUP_TOKENS = 2**16
ROW_GROUP_ROWS = 2**12
"""A row group ends where it has as many tokens, or as many completions."""


NOT_SCORED = Score(reward=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCompletion:
    """A completion with where it comes from and all that became of it: a row of a file."""

    completion: Completion
    prompt_id: str
    prompt: str
    """As text, special tokens included."""
    serial: int
    """The prompt's number in its stream; completions of equal serial answer the same prompt."""
    sample: int
    """0, 1, .. among the answers to one prompt."""
    score: Score = NOT_SCORED
    prompt_token_ids: Sequence[int] = ()
    """Empty if not known."""
    pieces: Sequence[str] | None = None
    """What each token adds to the text: see ``sampling.pieces``."""
    step: int | None = None
    """Of training."""
    advantage: float | None = None
    accepted: bool | None = None
    """Whether the group was trained on (dynamic sampling); None where nothing is trained."""
    selected: Sequence[bool] | np.ndarray | None = None
    """Of each token, whether it got a policy gradient."""


# ---- writing ------------------------------------------------------------------------------------


def write_completions(path: Path, rows: Iterable[StoredCompletion]) -> None:
    """Write rows as they come, a row group in memory at a time; the file is whole or not there.

    Raises:
        RunError: the disk is full.
    """

    def write(partial: Path) -> None:
        with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
            for group in _row_groups(rows):
                writer.write_table(_table([_columns(row) for row in group]))

    write_atomically(path, write)


def _row_groups(rows: Iterable[StoredCompletion]) -> Iterator[list[StoredCompletion]]:
    group: list[StoredCompletion] = []
    tokens = 0
    for row in rows:
        group.append(row)
        tokens += len(row.completion)
        if tokens >= ROW_GROUP_TOKENS or len(group) >= ROW_GROUP_ROWS:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def _columns(row: StoredCompletion) -> dict[str, Any]:
    """The entries of a row, in the order of ``SCHEMA``."""
    completion, score = row.completion, row.score
    unknown = np.isnan(completion.logprobs).all()
    return {
        "step": row.step,
        "prompt_id": row.prompt_id,
        "prompt": row.prompt,
        "prompt_token_ids": row.prompt_token_ids or None,
        "serial": row.serial,
        "sample": row.sample,
        "text": completion.text,
        "finish_reason": str(completion.finish_reason),
        "reward": score.reward,
        "verdict": score.verdict,
        "reward_parts": list(score.parts.items()),
        "error": score.error,
        "advantage": row.advantage,
        "accepted": row.accepted,
        "token_ids": completion.token_ids,
        "pieces": row.pieces,
        "logprobs": None if unknown else completion.logprobs,
        "entropies": completion.entropies,
        "selected": row.selected,
        "top_ids": None if completion.top_ids is None else completion.top_ids.ravel(),
        "top_logprobs": (
            None if completion.top_logprobs is None else completion.top_logprobs.ravel()
        ),
    }


def _table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    columns = {name: [row[name] for row in rows] for name in SCHEMA.names}
    try:
        return pa.table(columns, schema=SCHEMA)
    except UnicodeEncodeError:  # half of a surrogate pair: text that JSON can spell, but not UTF-8
        return pa.table(_encodable(columns), schema=SCHEMA)


def _encodable(value: Any) -> Any:
    """The same value with ``?`` for what UTF-8 cannot hold, however deep the text is."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {name: _encodable(one) for name, one in value.items()}
    return type(value)(map(_encodable, value)) if isinstance(value, list | tuple) else value


# ---- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns:
    """Some columns of N completions, as they lie in memory. Made by ``read_columns``."""

    batch: pa.RecordBatch

    def __len__(self) -> int:
        return self.batch.num_rows

    def values(self, name: str) -> list[Any]:
        """A column's N entries as Python's; None for null."""
        return self.batch.column(name).to_pylist()

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers: float64 [N], nan for null."""
        return self.batch.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)

    def lengths(self, name: str = "token_ids") -> np.ndarray:
        """How many entries each list has: int64 [N], 0 for null."""
        return self.batch.column(name).value_lengths().fill_null(0).to_numpy().astype(np.int64)

    def flat(self, name: str) -> np.ndarray:
        """The entries of all lists one after the other, without a copy unless they are booleans."""
        return self.batch.column(name).flatten().to_numpy(zero_copy_only=False)

    def texts(self, name: str = "pieces") -> tuple[np.ndarray, list[str]]:
        """The same of texts: an index of each entry into the list of different texts."""
        coded = self.batch.column(name).flatten().dictionary_encode()
        return coded.indices.to_numpy(zero_copy_only=False), coded.dictionary.to_pylist()

    def arrays(self, name: str) -> "list[np.ndarray | None]":
        """Each row's list as an array; None for null."""
        pieces = np.split(self.flat(name), self.lengths(name).cumsum()[:-1])
        known = self.batch.column(name).is_valid().to_pylist()
        return [one if is_known else None for one, is_known in zip(pieces, known, strict=False)]

    def taken(self, rows: np.ndarray) -> "Columns":
        """Some of the rows, by number."""
        return self if len(rows) == len(self) else Columns(self.batch.take(pa.array(rows)))

    @cached_property
    def rows(self) -> list[StoredCompletion]:
        """The rows as records, of all columns of ``SCHEMA``."""
        kinds = {field.name: field.type for field in SCHEMA}
        values = {
            name: self.arrays(name)
            if pa.types.is_list(kind) and name != "pieces"
            else self.values(name)
            for name, kind in kinds.items()
        }
        return [
            _stored(dict(zip(values, row, strict=True)))
            for row in zip(*values.values(), strict=True)
        ]


def read_columns(paths: Iterable[Path], names: Sequence[str] = SCHEMA.names) -> Iterator[Columns]:
    """The named columns of files one behind the other, a row group at a time.

    Raises:
        RunError: a file cannot be read, or is none of completions.
    """
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                _check_columns(path, file.schema_arrow)
                for number in range(file.num_row_groups):
                    table = file.read_row_group(number, columns=list(names))
                    if table.num_rows:
                        yield Columns(table.select(list(names)).combine_chunks().to_batches()[0])
        except (OSError, pa.ArrowException) as error:
            raise RunError(
                f"cannot read {path}: {error}; if it was cut off, delete it: the command that made "
                "it makes it again"
            ) from error


def read_completions(
    paths: Iterable[Path], wanted_N: np.ndarray | None = None
) -> Iterator[StoredCompletion]:
    """The completions of files one behind the other, a row group in memory at a time.

    Args:
        wanted_N: bool, one entry a completion; the others are left out.

    Raises:
        RunError: a file cannot be read, or is none of completions.
    """
    start = 0
    for columns in read_columns(paths):
        end = start + len(columns)
        if wanted_N is not None:
            columns = columns.taken(np.flatnonzero(wanted_N[start:end]))
        yield from columns.rows
        start = end


def part_files(folder: Path) -> list[Path]:
    """The files of a folder that is filled part by part, in order; each is whole."""
    return sorted(folder.glob("part_*.parquet"))


def part_file(folder: Path, number: int) -> Path:
    """The file of a part, counted from 0."""
    return folder / f"part_{number:05d}.parquet"


def _check_columns(path: Path, schema: pa.Schema) -> None:
    if missing := [name for name in SCHEMA.names if name not in schema.names]:
        raise RunError(f"{path} has no column {', '.join(missing)}: is it a file of completions?")


def _stored(row: dict[str, Any]) -> StoredCompletion:
    tokens, prompt = len(row["token_ids"]), row["prompt_token_ids"]
    unknown = np.full(tokens, np.nan, np.float32)
    return StoredCompletion(
        completion=Completion(
            token_ids=row["token_ids"],
            logprobs=unknown if row["logprobs"] is None else row["logprobs"],
            entropies=row["entropies"],
            finish_reason=FinishReason(row["finish_reason"]),
            text=row["text"],
            top_ids=_by_token(row["top_ids"], tokens),
            top_logprobs=_by_token(row["top_logprobs"], tokens),
        ),
        score=Score(
            reward=row["reward"],
            verdict=row["verdict"],
            parts=dict(row["reward_parts"] or ()),
            error=row["error"],
        ),
        prompt_token_ids=() if prompt is None else tuple(prompt.tolist()),
        **{
            name: row[name]
            for name in (
                *("prompt_id", "prompt", "serial", "sample", "pieces"),
                *("step", "advantage", "accepted", "selected"),
            )
        },
    )


def _by_token(flat: np.ndarray | None, tokens: int) -> np.ndarray | None:
    """[T K] as [T, K]."""
    return None if flat is None else flat.reshape(tokens, len(flat) // tokens if tokens else 0)
