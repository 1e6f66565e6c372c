"""The section on forking tokens: which words have high and which low entropy, and where."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from forkpoint.analysis.words import Word, read_words
from forkpoint.report.charts import mean_and_p90
from forkpoint.report.data import RunData
from forkpoint.report.text import number, three_figures, visible
from forkpoint.report.wordcloud import CloudWord, word_cloud
from forkpoint.runs import RunDirectory
from forkpoint.runs.completions import part_files, read_columns
from forkpoint.runs.results import Pattern, find_result

MOST_WORDS = 100
"""Of highest, and of lowest mean entropy; as in the paper's figure 2."""
SHOWN = 16
"""Lines of a table before it is unfolded."""
REACH = 6
"""Neighbours of a word in a context, on each side."""
MOST_CONTEXTS = 3
"""Of a word."""


def words_section(run: RunData) -> dict[str, Any] | None:
    """Tables, clouds and contexts; None if the analysis has no words.parquet.

    ``parts`` is empty if no word occurs often enough.
    """
    path = RunDirectory(run.root).words_parquet
    pattern = find_result(run.root, Pattern)
    if pattern is None or not path.exists():
        return None
    words = read_words(path)
    half = min(MOST_WORDS, len(words) // 2)  # no word is in both
    highest, lowest = words[: min(MOST_WORDS, len(words) - half)], words[len(words) - half :][::-1]
    paths = part_files(RunDirectory(run.root).completions_dir("analysis"))
    contexts = find_contexts(paths, [word.text for word in (*highest, *lowest)])
    parts = [("Highest", "highest", highest), ("Lowest", "lowest", lowest)]
    return {
        "kinds": len(words),
        "more_than": pattern.words_min_count,
        "shown": SHOWN,
        "parts": [
            {
                "title": title,
                "anchor": f"forks-{name}",
                "cloud": _cloud(part, name),
                "lines": [
                    _line(word, contexts.get(word.text, ()), max(w.p90 for w in part))
                    for word in part
                ],
            }
            for title, name, part in parts
            if part
        ],
    }


def _cloud(words: Sequence[Word], name: str) -> Markup:
    return word_cloud(
        [
            CloudWord(
                text=shown(word.text.strip() or word.text),
                value=word.mean,
                title=f"{shown(word.text)}: mean {number(word.mean)} nats, {word.count:,} times",
            )
            for word in words
        ],
        f"Word cloud of the {len(words)} words of {name} mean entropy; the table has the numbers",
    )


def shown(text: str) -> str:
    """A token's text in one line, with its white space to be seen."""
    return visible(text, newline="↵").replace(" ", "␣")


def _line(word: Word, contexts: "Sequence[Context]", reach: float) -> dict[str, Any]:
    return {
        "word": word,
        "text": shown(word.text),
        "mean": three_figures(word.mean),
        "p90": three_figures(word.p90),
        "chart": mean_and_p90(word.mean, word.p90, reach),
        "contexts": [
            [visible(text, newline="↵") for text in (c.before, c.word, c.after)] for c in contexts
        ],
    }


# ---- contexts -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Context:
    """An occurrence of a word, with the text of its neighbours in the completion."""

    before: str
    word: str
    after: str


def find_contexts(paths: Sequence[Path], words: Sequence[str]) -> dict[str, list[Context]]:
    """Up to ``MOST_CONTEXTS`` contexts of each word, each from another completion, the first ones.

    Reading ends as soon as every word has all of them. Words that do not occur have none.
    """
    found: defaultdict[str, list[Context]] = defaultdict(list)
    missing = set(words)
    for columns in read_columns(paths, ["pieces"]):
        codes, texts = columns.texts("pieces")
        ends = columns.lengths("pieces").cumsum()
        wanted = np.array([text in missing for text in texts], bool)
        last: dict[str, int] = {}  # the completion of a word's last context
        for place in np.flatnonzero(wanted[codes]).tolist():
            word, completion = texts[codes[place]], int(np.searchsorted(ends, place, "right"))
            if word not in missing or last.get(word) == completion:
                continue
            last[word] = completion
            start = int(ends[completion - 1]) if completion else 0
            found[word].append(_context(texts, codes, place, start, int(ends[completion])))
            if len(found[word]) == MOST_CONTEXTS:
                missing.discard(word)
        if not missing:
            break
    return dict(found)


def _context(texts: list[str], codes: np.ndarray, place: int, start: int, end: int) -> Context:
    """The neighbours of a token, within its completion from ``start`` to ``end``."""

    def joined(a: int, b: int) -> str:
        return "".join(texts[code] for code in codes[a:b])

    return Context(
        before=joined(max(start, place - REACH), place),
        word=texts[codes[place]],
        after=joined(place + 1, min(end, place + 1 + REACH)),
    )
