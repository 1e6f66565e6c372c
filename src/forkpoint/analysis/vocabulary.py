"""The text of every token, as it stands after another one."""

from pathlib import Path
from typing import Any

from forkpoint.runs.vocabulary import write_vocabulary

BATCH = 4096
"""Tokens decoded at a time."""


def ensure_vocabulary(analysis: Path, tokenizer: Any) -> None:
    """Write ``analysis``/vocabulary.parquet if it is not there.

    Raises:
        RunError: the disk is full.
    """
    path = analysis / "vocabulary.parquet"
    if not path.exists():
        write_vocabulary(path, vocabulary_texts(tokenizer))


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
