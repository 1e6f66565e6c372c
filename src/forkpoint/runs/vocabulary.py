"""completions/vocabulary.parquet: the text of every token id, for ids that no completion holds."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from forkpoint.errors import RunError
from forkpoint.runs.atomic import write_atomically

BATCH = 4096
"""Tokens decoded at a time."""


def ensure_vocabulary(path: Path, tokenizer: Any) -> None:
    """Write what each id of a tokenizer adds to a text, unless the file is there.

    Raises:
        RunError: the disk is full.
    """
    if not path.exists():
        texts = vocabulary_texts(tokenizer)
        table = pa.table({"token_id": pa.array(range(len(texts)), pa.int32()), "text": texts})
        write_atomically(path, lambda partial: pq.write_table(table, partial, compression="zstd"))


def read_texts(path: Path, token_ids: Collection[int]) -> dict[int, str]:
    """The texts of some ids; empty if there is no such file, without the ids that it lacks.

    Raises:
        RunError: it cannot be read.
    """
    if not path.exists() or not token_ids:
        return {}
    try:
        table = pq.read_table(path, filters=[("token_id", "in", list(token_ids))])
        return dict(zip(table["token_id"].to_pylist(), table["text"].to_pylist(), strict=True))
    except (OSError, pa.ArrowException, KeyError) as error:
        raise RunError(f"cannot read {path}: {error}") from error


def vocabulary_texts(tokenizer: Any) -> list[str]:
    """What each id adds to a text, from 0 to the last; U+FFFD where it is a piece of a character.

    It is decoded after a word, since a decoder may drop the space before a text's first token.
    """
    size = len(tokenizer)
    special = set(tokenizer.all_special_ids)
    word = next((i for i in range(size) if i not in special and tokenizer.decode([i]).isalnum()), 0)
    known = len(tokenizer.decode([word]))
    texts: list[str] = []
    for start in range(0, size, BATCH):
        pairs = [[word, i] for i in range(start, min(start + BATCH, size))]
        texts += [text[known:] for text in tokenizer.batch_decode(pairs)]
    return texts
