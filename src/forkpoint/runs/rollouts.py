"""rollouts/step_XXXXX.parquet and eval/step_XXXXX.parquet: one row per completion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from forkpoint.errors import RunError
from forkpoint.runs.atomic import write_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRow:
    """A sampled completion and all that became of it. The lists are one entry per token."""

    step: int
    prompt_id: str
    prompt: str
    serial: int
    """The prompt's place in the run's stream; groups are rows of equal serial."""
    sample: int
    completion: str
    reward: float | None
    """Null: a verifier failed, or a reward function left the sample out."""
    verdict: float | None
    """What the verifier alone gave; 1 or more is right. Null: it failed."""
    reward_parts: Mapping[str, float | None]
    error: str | None
    advantage: float
    accepted: bool
    """Whether the group was trained on (dynamic sampling)."""
    finish_reason: str
    """``stop`` or ``length``."""
    token_ids: Sequence[int]
    tokens: Sequence[str]
    """Each token id decoded alone."""
    logprobs: Sequence[float]
    """Nats, under the distribution the token was drawn from."""
    entropies: Sequence[float] | None
    """Nats, of that distribution."""
    selected: Sequence[bool]
    """Whether the token got a policy gradient."""


SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("serial", pa.int64()),
        ("sample", pa.int32()),
        ("completion", pa.string()),
        ("reward", pa.float64()),
        ("verdict", pa.float64()),
        ("reward_parts", pa.map_(pa.string(), pa.float64())),
        ("error", pa.string()),
        ("advantage", pa.float64()),
        ("accepted", pa.bool_()),
        ("finish_reason", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("tokens", pa.list_(pa.string())),
        ("logprobs", pa.list_(pa.float32())),
        ("entropies", pa.list_(pa.float32())),
        ("selected", pa.list_(pa.bool_())),
    ]
)


def stored_verdict(values: Mapping[str, Any]) -> float | None:
    """The verifier's verdict in a stored row.

    A row without that column has its first reward part instead, or without parts its reward.
    """
    if "verdict" in values:
        return values["verdict"]
    parts = dict(values.get("reward_parts") or {})
    return next(iter(parts.values()), values.get("reward"))


def write_rollouts(path: Path, rows: Sequence[RolloutRow]) -> None:
    """Write a step's rows, atomically.

    Raises:
        RunError: the disk is full.
    """
    try:
        table = _table(rows)
    except UnicodeEncodeError:  # half of a surrogate pair: text that JSON can spell, but not UTF-8
        table = _table([_encodable(row) for row in rows])
    write_atomically(path, lambda partial: pq.write_table(table, partial, compression="zstd"))


def read_rollouts(path: Path) -> list[RolloutRow]:
    """The rows of one file.

    Raises:
        RunError: no such file, not parquet, or a column is missing.
    """
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        missing = [name for name in SCHEMA.names if name not in table.column_names]
        if missing:
            raise RunError(f"{path} has no column {', '.join(missing)}: is it a file of rollouts?")
        rows = table.select(SCHEMA.names).cast(SCHEMA).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    return [RolloutRow(**{**row, "reward_parts": dict(row["reward_parts"])}) for row in rows]


def _table(rows: Sequence[RolloutRow]) -> pa.Table:
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields(RolloutRow)}
    columns["reward_parts"] = [list(parts.items()) for parts in columns["reward_parts"]]
    return pa.table(columns, schema=SCHEMA)


def _encodable(row: RolloutRow) -> RolloutRow:
    def text(value: str) -> str:
        return value.encode("utf-8", "replace").decode()

    return replace(
        row,
        prompt_id=text(row.prompt_id),
        prompt=text(row.prompt),
        completion=text(row.completion),
        reward_parts={text(name): part for name, part in row.reward_parts.items()},
        error=None if row.error is None else text(row.error),
        tokens=[text(token) for token in row.tokens],
    )
