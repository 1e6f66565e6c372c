"""Which words are forks: mean and 90th percentile of entropy by the token's text.

As in the paper's Fig. 2: tokens of equal text are one word, rare words say nothing. A token that
adds no text (a part of a character) is no word.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from forkpoint.errors import RunError
from forkpoint.runs.atomic import write_atomically
from forkpoint.runs.completions import read_columns
from forkpoint.selection.radix import kth_values

SCHEMA = pa.schema(
    [
        ("token_id", pa.int32()),
        ("text", pa.string()),
        ("count", pa.int64()),
        ("mean", pa.float64()),
        ("p90", pa.float64()),
        ("share_selected", pa.float64()),
    ]
)

COLUMNS = ("pieces", "token_ids", "entropies", "selected", "accepted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A token's text over all its occurrences."""

    token_id: int
    """The id of its first occurrence."""
    text: str
    count: int
    mean: float
    """Nats."""
    p90: float
    """Nats; 90 % of the occurrences have no more."""
    share_selected: float | None = None
    """Of its occurrences in groups that were trained on; None without any."""


def find_words(paths: Sequence[Path], min_count: int) -> list[Word]:
    """Words that occur more than ``min_count`` times, by mean entropy descending.

    Tokens whose entropy is not known do not count. Memory grows with the number of different words,
    not of tokens.

    Raises:
        RunError: a file cannot be read.
    """
    tally = _Tally()
    for tokens in _read(paths, tally.index, grow=True):
        tally.add(tokens)
    counts_W, sums_W, trained_W, selected_W = tally.sums
    kept = [i for text, i in tally.index.items() if text and counts_W[i] > min_count]
    group = np.full(len(tally.index), -1, dtype=np.int64)
    group[kept] = np.arange(len(kept))
    p90 = kth_values(
        lambda: ((t.entropies, group[t.words]) for t in _read(paths, tally.index)),
        np.arange(len(kept)),
        -(-9 * counts_W[kept].astype(np.int64) // 10),
    )
    texts = list(tally.index)
    found = [
        Word(
            token_id=tally.token_ids[i],
            text=texts[i],
            count=int(counts_W[i]),
            mean=float(sums_W[i] / counts_W[i]),
            p90=float(p90[place]),
            share_selected=float(selected_W[i] / trained_W[i]) if trained_W[i] else None,
        )
        for place, i in enumerate(kept)
    ]
    return sorted(found, key=lambda word: (-word.mean, word.text))


def write_words(path: Path, words: Sequence[Word]) -> None:
    """Write the table of words.

    Raises:
        RunError: the disk is full.
    """
    columns = {name: [getattr(word, name) for word in words] for name in SCHEMA.names}
    table = pa.table(columns, schema=SCHEMA)
    write_atomically(path, lambda partial: pq.write_table(table, partial, compression="zstd"))


def read_words(path: Path) -> list[Word]:
    """What ``write_words`` wrote.

    Raises:
        RunError: no such file, or not one of words.
    """
    try:
        rows = pq.read_table(path, columns=[one.name for one in fields(Word)]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    return [Word(**row) for row in rows]


class _Tokens(NamedTuple):
    """Some tokens whose entropy is known."""

    words: np.ndarray
    """int64, the number of each one's text."""
    token_ids: np.ndarray
    entropies: np.ndarray
    trained: np.ndarray
    """bool, whether the group was trained on."""
    selected: np.ndarray


@dataclass(slots=True)
class _Tally:
    """The W words met so far."""

    index: dict[str, int] = field(default_factory=dict)
    token_ids: dict[int, int] = field(default_factory=dict)
    """Of each word's first occurrence."""
    sums: np.ndarray = field(default_factory=lambda: np.zeros((4, 0)))
    """float64 [4, W]: occurrences, their entropy, those in trained groups, selected ones."""

    def add(self, tokens: _Tokens) -> None:
        new, first = np.unique(tokens.words, return_index=True)
        for word, token_id in zip(new.tolist(), tokens.token_ids[first].tolist(), strict=True):
            self.token_ids.setdefault(word, token_id)
        weights = (None, tokens.entropies, tokens.trained, tokens.trained & tokens.selected)
        added = np.array([np.bincount(tokens.words, w, len(self.index)) for w in weights], float)
        added[:, : self.sums.shape[1]] += self.sums
        self.sums = added


def _read(paths: Sequence[Path], index: dict[str, int], *, grow: bool = False) -> Iterator[_Tokens]:
    """The tokens of the files, a row group at a time.

    Args:
        grow: put new texts into ``index``; otherwise it has them all.
    """
    for columns in read_columns(paths, COLUMNS):
        known = np.flatnonzero([not null for null in columns.batch.column(2).is_null().to_pylist()])
        columns = columns.taken(known)
        codes, texts = columns.texts("pieces")
        if grow:
            for text in texts:
                index.setdefault(text, len(index))
        words = np.array([index[text] for text in texts], dtype=np.int64)[codes]
        entropies = columns.flat("entropies")
        selected = columns.flat("selected")
        trained = np.repeat(columns.numbers("accepted") == 1, columns.lengths())
        finite = np.isfinite(entropies)
        yield _Tokens(
            words=words[finite],
            token_ids=columns.flat("token_ids")[finite],
            entropies=entropies[finite],
            trained=trained[finite],
            selected=selected.astype(bool)[finite] if len(selected) else trained[finite],
        )
