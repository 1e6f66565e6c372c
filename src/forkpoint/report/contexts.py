"""Where words stand: their neighbours in the token store, found in one pass over it."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from forkpoint.runs.tokens import TokenStore

REACH = 6
"""Neighbours on each side."""
MOST = 3
"""Contexts of a word."""


@dataclass(frozen=True, slots=True)
class Context:
    """An occurrence of a word, with the text of its neighbours."""

    before: str
    word: str
    after: str


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Neighbouring rows of the store."""

    texts: list[str]
    completions_R: np.ndarray
    """A number that is the same for the tokens of one completion, and for no others nearby."""
    wanted_R: np.ndarray


def find_contexts(store: TokenStore, words: Sequence[str]) -> dict[str, list[Context]]:
    """Up to ``MOST`` contexts of each word, each from another completion, the first there are.

    Reading ends as soon as every word has all of them. Words that do not occur have none.
    """
    found: defaultdict[str, list[Context]] = defaultdict(list)
    open_words = set(words)
    for part in store.parts():
        taken: dict[str, int] = {}
        for stretch, first, last in _stretches(store, part, frozenset(words)):
            rows = first + np.flatnonzero(stretch.wanted_R[first:last])
            for row in map(int, rows):
                word, completion = stretch.texts[row], int(stretch.completions_R[row])
                if word not in open_words or taken.get(word) == completion:
                    continue
                taken[word] = completion
                found[word].append(_context(stretch, row))
                if len(found[word]) == MOST:
                    open_words.discard(word)
            if not open_words:
                return dict(found)
    return dict(found)


def _context(stretch: _Stretch, row: int) -> Context:
    """The neighbours that belong to the same completion."""
    texts, completions_R = stretch.texts, stretch.completions_R

    def joined(rows: range) -> str:
        return "".join(texts[i] for i in rows if completions_R[i] == completions_R[row])

    return Context(
        before=joined(range(max(0, row - REACH), row)),
        word=texts[row],
        after=joined(range(row + 1, min(len(texts), row + 1 + REACH))),
    )


def _stretches(
    store: TokenStore, part: int, words: frozenset[str]
) -> Iterator[tuple[_Stretch, int, int]]:
    """(stretch, first, last): a part's rows cut up, each row in one [first, last).

    A stretch reaches ``REACH`` rows beyond first and last wherever the part does.
    """
    held: _Stretch | None = None
    ready = 0
    for new in _batches(store, part, words):
        stretch = new if held is None else _joined(held, new)
        last = max(ready, len(stretch.texts) - REACH)
        yield stretch, ready, last
        start = max(0, last - REACH)
        held, ready = _cut(stretch, start), last - start
    if held is not None:
        yield held, ready, len(held.texts)


def _batches(store: TokenStore, part: int, words: frozenset[str]) -> Iterator[_Stretch]:
    """The part's batches; a completion begins wherever a position does not follow the last one."""
    last, completion = -2, -1
    for batch in store.columns(part, ["text", "position"]):
        if not len(batch):
            continue
        coded = batch.column(0).dictionary_encode()
        kinds = coded.dictionary.to_pylist()
        codes_R = coded.indices.to_numpy()
        positions_R = batch.column(1).to_numpy()
        begins_R = np.diff(positions_R, prepend=last) != 1
        completions_R = completion + np.cumsum(begins_R)
        last, completion = int(positions_R[-1]), int(completions_R[-1])
        wanted = np.array([kind in words for kind in kinds])
        yield _Stretch([kinds[code] for code in codes_R], completions_R, wanted[codes_R])


def _joined(a: _Stretch, b: _Stretch) -> _Stretch:
    return _Stretch(
        a.texts + b.texts,
        np.concatenate([a.completions_R, b.completions_R]),
        np.concatenate([a.wanted_R, b.wanted_R]),
    )


def _cut(stretch: _Stretch, start: int) -> _Stretch:
    return _Stretch(stretch.texts[start:], stretch.completions_R[start:], stretch.wanted_R[start:])
