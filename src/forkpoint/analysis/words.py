"""Which words are forks: mean and 90th percentile of entropy by the token's text.

As in the paper's Fig. 2: tokens of equal text are one word, rare words say nothing. A token that
adds no text (a part of a character) is no word.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from forkpoint.errors import RunError
from forkpoint.runs.atomic import write_atomically
from forkpoint.runs.tokens import TokenStore
from forkpoint.selection.radix import kth_by_group

SCHEMA = pa.schema(
    [
        ("token_id", pa.int32()),
        ("text", pa.string()),
        ("count", pa.int64()),
        ("mean", pa.float64()),
        ("p90", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A token's text over all its occurrences."""

    token_id: int
    """Of the first occurrence."""
    text: str
    count: int
    mean: float
    """Nats."""
    p90: float
    """Nats; 90 % of the occurrences have no more."""


def find_words(store: TokenStore, min_count: int) -> list[Word]:
    """Words that occur more than ``min_count`` times, by mean entropy descending.

    Memory grows with the number of different words, not of tokens.
    """
    index: dict[str, int] = {}
    ids: list[int] = []
    counts, sums = np.zeros(0, np.int64), np.zeros(0)
    for words, token_ids, entropies in _read(store, index, grow=True):
        _note_first(ids, words, token_ids)
        counts = _add(counts, np.bincount(words, minlength=len(index)))
        sums = _add(sums, np.bincount(words, weights=entropies, minlength=len(index)))
    kept = [i for text, i in index.items() if text and counts[i] > min_count]
    group = np.full(len(index), -1, dtype=np.int64)
    group[kept] = np.arange(len(kept))
    p90 = kth_by_group(
        lambda: ((entropies, group[words]) for words, _, entropies in _read(store, index)),
        -(-9 * counts[kept] // 10),
    )
    texts = list(index)
    found = [
        Word(
            token_id=ids[i],
            text=texts[i],
            count=int(counts[i]),
            mean=float(sums[i] / counts[i]),
            p90=float(p90[g]),
        )
        for g, i in enumerate(kept)
    ]
    return sorted(found, key=lambda word: (-word.mean, word.text))


def write_words(path: Path, words: list[Word]) -> None:
    """analysis/words.parquet.

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
        rows = pq.read_table(path, columns=SCHEMA.names).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    return [Word(**row) for row in rows]


def _read(
    store: TokenStore, index: dict[str, int], *, grow: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(index of the text, token id, entropy) of the tokens, a batch at a time.

    Args:
        grow: put new texts into ``index``; otherwise it has them all.
    """
    for part in store.parts():
        for batch in store.columns(part, ["text", "token_id", "entropy"]):
            coded = batch.column(0).dictionary_encode()
            texts = coded.dictionary.to_pylist()
            if grow:
                for text in texts:
                    index.setdefault(text, len(index))
            numbers = np.array([index[text] for text in texts], dtype=np.int64)
            codes = coded.indices.to_numpy(zero_copy_only=False)
            yield numbers[codes], batch.column(1).to_numpy(), batch.column(2).to_numpy()


def _note_first(ids: list[int], words: np.ndarray, token_ids: np.ndarray) -> None:
    """Append the token id of each word that is met for the first time; they come in order."""
    new, first = np.unique(words, return_index=True)
    ids += token_ids[first[new >= len(ids)]].tolist()


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b, where b may be longer."""
    b[: len(a)] += a
    return b
