"""How many tokens each stored completion has, and which of them are shown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forkpoint.report.completions import ShownGroup, Sizes
from forkpoint.runs.columns import stream_columns

HEADS = ("prompt_id", "prompt", "sample", "reward", "finish_reason", "tokens")
ROWS = 256
"""Completions in memory at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionIndex:
    """The N completions of some files in order. Made by ``read_index``."""

    paths: list[Path]
    part_N: np.ndarray
    """int64 [N], index into ``paths``, ascending."""
    group_N: np.ndarray
    """int64 [N], the prompt's number, in the order prompts first occur."""
    tokens_N: np.ndarray
    """int64 [N]."""
    sizes: Sizes

    def rows_of(self, part: int) -> np.ndarray:
        """Indices of a file's completions."""
        return np.flatnonzero(self.part_N == part)

    def shown_tokens(self, groups: np.ndarray, limit: int) -> np.ndarray:
        """int64 [N], how many tokens of each completion are shown: its first ones.

        Args:
            limit: tokens of a group at most; they go to its first completions.
        """
        shown_N = np.where(np.isin(self.group_N, groups), self.tokens_N, 0)
        for group in groups[self.sizes.tokens_P[groups] > limit]:
            members = np.flatnonzero(self.group_N == group)
            before = np.cumsum(self.tokens_N[members]) - self.tokens_N[members]
            shown_N[members] = np.clip(limit - before, 0, self.tokens_N[members])
        return shown_N


def read_index(paths: Sequence[Path]) -> CompletionIndex:
    """Of files with the rows of ``runs.tokens.COMPLETIONS``.

    Raises:
        RunError: a file cannot be read.
    """
    numbers: dict[str, int] = {}
    prompt_bytes: list[int] = []
    rows: list[tuple[int, int, int]] = []
    for part, path in enumerate(paths):
        for row in stream_rows(path, ("prompt_id", "prompt", "tokens")):
            if row["prompt_id"] not in numbers:
                numbers[row["prompt_id"]] = len(numbers)
                prompt_bytes.append(len(row["prompt"].encode()))
            rows.append((part, numbers[row["prompt_id"]], row["tokens"]))
    part_N, group_N, tokens_N = np.asarray(rows, np.int64).reshape(-1, 3).T
    sizes = Sizes(
        completions_P=np.bincount(group_N, minlength=len(numbers)),
        tokens_P=np.bincount(group_N, tokens_N, minlength=len(numbers)).astype(np.int64),
        prompt_bytes_P=np.asarray(prompt_bytes, np.int64),
    )
    return CompletionIndex(
        paths=list(paths), part_N=part_N, group_N=group_N, tokens_N=tokens_N, sizes=sizes
    )


def stream_rows(path: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The named columns of a file, row by row, a few rows in memory.

    Raises:
        RunError: it cannot be read, or a column is missing.
    """
    for batch in stream_columns(path, names, rows=ROWS):
        yield from batch.to_pylist()


def group_of(number: int, row: dict[str, Any]) -> ShownGroup:
    """The group that a row begins."""
    return ShownGroup(
        number=number,
        prompt_id=row["prompt_id"],
        prompt=row["prompt"],
        accepted=None,
        sampled=0,
    )
