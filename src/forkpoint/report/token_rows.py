"""Rows of the token store as arrays: some completions' tokens out of one part."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forkpoint.errors import RunError
from forkpoint.report.completions import Alternatives, Vocabulary
from forkpoint.report.packing import LEAST_PROBABILITY, probability_codes
from forkpoint.runs.columns import stream_columns

COLUMNS = ("token_id", "text", "logprob", "entropy", "top_ids", "top_logprobs")
ROWS = 65_536
"""In memory at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRows:
    """T rows of the token store, in its order."""

    words_T: np.ndarray
    """int64, places in the ``Vocabulary``."""
    logprobs_T: np.ndarray
    entropies_T: np.ndarray
    counts_T: np.ndarray
    """int64, alternatives of each token."""
    token_ids_A: np.ndarray
    codes_A: np.ndarray

    def cut(self, start: int, end: int, offsets: np.ndarray) -> "TokenRows":
        """The tokens from ``start`` to ``end``.

        Args:
            offsets: int64 [T + 1], where each token's alternatives begin.
        """
        tokens, others = slice(start, end), slice(int(offsets[start]), int(offsets[end]))
        return TokenRows(
            words_T=self.words_T[tokens],
            logprobs_T=self.logprobs_T[tokens],
            entropies_T=self.entropies_T[tokens],
            counts_T=self.counts_T[tokens],
            token_ids_A=self.token_ids_A[others],
            codes_A=self.codes_A[others],
        )

    def alternatives(self) -> Alternatives:
        """What else could have stood in the place of each token."""
        return Alternatives(
            counts_T=self.counts_T.astype(np.uint8),
            token_ids_A=self.token_ids_A,
            codes_A=self.codes_A,
        )


def read_token_rows(path: Path, wanted_T: np.ndarray, vocabulary: Vocabulary) -> TokenRows:
    """The wanted rows of a part.

    Args:
        wanted_T: bool, one entry per row of the file.

    Raises:
        RunError: the file has another number of rows, or cannot be read.
    """
    parts = [_nothing()]
    at = 0
    for batch in stream_columns(path, COLUMNS, rows=ROWS):
        rows = np.flatnonzero(wanted_T[at : at + batch.num_rows])
        at += batch.num_rows
        if len(rows):
            parts.append(_rows(batch, rows, vocabulary))
    if at != len(wanted_T):
        raise RunError(f"{path} has {at} tokens, its completions have {len(wanted_T)}")
    names = TokenRows.__dataclass_fields__
    return TokenRows(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})


def _nothing() -> TokenRows:
    whole, real = np.zeros(0, np.int64), np.zeros(0, np.float32)
    return TokenRows(
        words_T=whole,
        logprobs_T=real,
        entropies_T=real,
        counts_T=whole,
        token_ids_A=whole,
        codes_A=np.zeros(0, np.uint8),
    )


def _rows(batch: Any, rows: np.ndarray, vocabulary: Vocabulary) -> TokenRows:
    token_id, text, logprob, entropy, top_ids, top_logprobs = batch.columns
    ids_T = _numpy(token_id)[rows].astype(np.int64)
    texts = text.dictionary_encode()
    counts_T, token_ids_A, codes_A = _likely(ids_T, rows, top_ids, top_logprobs)
    return TokenRows(
        words_T=_places(
            ids_T, _numpy(texts.indices)[rows], texts.dictionary.to_pylist(), vocabulary
        ),
        logprobs_T=_numpy(logprob)[rows].astype(np.float32),
        entropies_T=_numpy(entropy)[rows].astype(np.float32),
        counts_T=counts_T,
        token_ids_A=token_ids_A,
        codes_A=codes_A,
    )


def _numpy(column: Any) -> np.ndarray:
    """An arrow array as numpy; nan for nulls."""
    return column.to_numpy(zero_copy_only=False)


def _places(
    token_ids_T: np.ndarray, codes_T: np.ndarray, texts: list[str], vocabulary: Vocabulary
) -> np.ndarray:
    """The vocabulary's places of (text, id) pairs; each different pair is looked up once."""
    keys, inverse = np.unique(token_ids_T * len(texts) + codes_T, return_inverse=True)
    places = [vocabulary.place(texts[k % len(texts)], k // len(texts)) for k in keys.tolist()]
    return np.asarray(places, np.int64)[inverse]


def _likely(
    token_ids_T: np.ndarray, rows: np.ndarray, top_ids: Any, top_logprobs: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(counts, ids, codes) of the tokens that were not chosen, down to ``LEAST_PROBABILITY``."""
    lengths = np.nan_to_num(_numpy(top_ids.value_lengths())).astype(np.int64)
    taken = np.zeros(len(lengths), bool)
    taken[rows] = True
    wanted = np.repeat(taken, lengths)
    ids_A, logprobs_A = _numpy(top_ids.flatten())[wanted], _numpy(top_logprobs.flatten())[wanted]
    token_A = np.repeat(np.arange(len(rows)), lengths[rows])
    kept = (ids_A != token_ids_T[token_A]) & (logprobs_A >= math.log(LEAST_PROBABILITY))
    counts_T = np.bincount(token_A[kept], minlength=len(rows))
    return counts_T, ids_A[kept].astype(np.int64), probability_codes(logprobs_A[kept])
