"""The section on forking tokens: which words have high and which low entropy, and where."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from forkpoint.report.charts import mean_and_p90
from forkpoint.report.contexts import Context, find_contexts
from forkpoint.report.data import RunData
from forkpoint.report.text import number, three_figures, visible
from forkpoint.report.wordcloud import CloudWord, word_cloud
from forkpoint.runs.columns import stream_columns
from forkpoint.runs.tokens import TokenStore

MOST_WORDS = 100
"""Of highest, and of lowest mean entropy; as in the paper's figure 2."""
SHOWN = 16
"""Lines of a table before it is unfolded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A line of analysis/words.parquet."""

    text: str
    token_id: int
    count: int
    mean: float
    p90: float


def words_section(run: RunData) -> dict[str, Any] | None:
    """Tables, clouds and contexts; None if the analysis has no words.parquet.

    ``parts`` is empty if no word occurs often enough.
    """
    path = run.analysis_dir / "words.parquet"
    summary = run.analysis("summary")
    if summary is None or not path.exists():
        return None
    kinds, highest, lowest = _ends(path)
    contexts = find_contexts(
        TokenStore(run.analysis_dir), [word.text for word in (*highest, *lowest)]
    )
    counted = (
        summary.object("words").number_or_none("min_count") if "words" in summary.fields else 0
    )
    parts = [("Highest", "highest", highest), ("Lowest", "lowest", lowest)]
    return {
        "kinds": kinds,
        "more_than": round(counted or 0),
        "shown": SHOWN,
        "parts": [
            {
                "title": title,
                "anchor": f"forks-{name}",
                "cloud": _cloud(words, name),
                "lines": [
                    _line(word, contexts.get(word.text, ()), max(w.p90 for w in words))
                    for word in words
                ],
            }
            for title, name, words in parts
            if words
        ],
    }


def _ends(path: Path) -> tuple[int, list[Word], list[Word]]:
    """(how many there are, the first ones, the last ones from the end); no word is in both."""
    highest: list[Word] = []
    rest: deque[Word] = deque(maxlen=MOST_WORDS)
    kinds = 0
    for batch in stream_columns(path, ["text", "token_id", "count", "mean", "p90"]):
        for row in batch.to_pylist():
            word = Word(**row)
            kinds += 1
            if len(highest) < MOST_WORDS:
                highest.append(word)
            else:
                rest.append(word)
    missing = min(MOST_WORDS, kinds // 2) - len(rest)
    if missing > 0:
        highest, moved = highest[:-missing], highest[-missing:]
        rest.extendleft(reversed(moved))
    return kinds, highest, list(reversed(rest))


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


def _line(word: Word, contexts: Sequence[Context], reach: float) -> dict[str, Any]:
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
