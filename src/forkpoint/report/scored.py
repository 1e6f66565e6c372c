"""What several checkpoints say of the same completions: the files of ``forkpoint dynamics``."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from forkpoint.report.completion_index import (
    HEADS,
    ROWS,
    CompletionIndex,
    group_of,
    stream_rows,
)
from forkpoint.report.completions import ShownCompletion, ShownGroup, Source, Vocabulary
from forkpoint.report.rollout_source import is_right, words
from forkpoint.runs.columns import stream_columns
from forkpoint.runs.vocabulary import read_texts

MOST_CHECKPOINTS = 6
"""Whose entropies the page holds: the first, the last, and some evenly between."""
COMPARED = 256
"""Completions that are looked at to tell whether two sets of them are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The files of ``forkpoint dynamics`` in an analysis folder."""

    path: Path
    """dynamics_tokens.parquet."""
    completions: list[Path]
    names: list[str]
    """Of the checkpoints, in order."""

    @property
    def on_the_page(self) -> list[int]:
        """Checkpoints that are: indices, evenly spaced, with the first and the last."""
        count = min(len(self.names), MOST_CHECKPOINTS)
        return [round(i * (len(self.names) - 1) / max(count - 1, 1)) for i in range(count)]

    def are_of(self, completions: list[Path]) -> bool:
        """Whether these completions were scored: by the first ones both have."""
        ours = dict(islice(_token_ids(self.completions), COMPARED))
        theirs = [pair for pair in islice(_token_ids(completions), COMPARED) if pair[0] in ours]
        return bool(theirs) and all(ours[key] == ids for key, ids in theirs)


def find_scores(analysis: Path, names: list[str]) -> Scores | None:
    """None if there are none.

    Args:
        names: of the checkpoints, from dynamics.json.
    """
    path = analysis / "dynamics_tokens.parquet"
    completions = sorted((analysis / "dynamics" / "completions").glob("part_*.parquet"))
    if not (names and completions and path.exists()):
        return None
    return Scores(path=path, completions=completions, names=names)


def _token_ids(paths: list[Path]) -> Iterator[tuple[tuple[str, int], list[int]]]:
    for path in paths:
        for row in stream_rows(path, ("prompt_id", "sample", "token_ids")):
            yield (row["prompt_id"], row["sample"]), row["token_ids"]


# ---- checkpoints beside the tokens --------------------------------------------------------------


def add_checkpoints(scores: Scores, source: Source) -> None:
    """Give each shown completion the entropies of the checkpoints that are on the page.

    A completion that was not scored, or whose length is another, keeps nan.

    Raises:
        RunError: the file cannot be read.
    """
    taken = scores.on_the_page
    source.checkpoints = [scores.names[i] for i in taken]
    source.checkpoints_scored = len(scores.names)
    for completion, checkpoint, values_T in _scores(scores, "entropies", source):
        if checkpoint in taken and len(values_T) == completion.length:
            tokens = len(completion.words_T)
            if completion.entropies_CT is None:
                completion.entropies_CT = np.full((len(taken), tokens), np.nan, np.float32)
            completion.entropies_CT[taken.index(checkpoint)] = values_T[:tokens]


def _scores(
    scores: Scores, column: str, source: Source
) -> Iterator[tuple[ShownCompletion, int, np.ndarray]]:
    """(completion, checkpoint, values) of the completions shown."""
    shown = {
        (group.prompt_id, completion.sample): completion
        for group in source.groups
        for completion in group.completions
    }
    names = ["prompt_id", "sample", "checkpoint", column]
    for batch in stream_columns(scores.path, names, rows=ROWS):
        keys = zip(*(batch.column(i).to_pylist() for i in range(3)), strict=True)
        for i, (prompt_id, sample, checkpoint) in enumerate(keys):
            completion = shown.get((prompt_id, sample))
            if completion is not None:
                values = batch.column(3)[i].values.to_numpy(zero_copy_only=False)
                yield completion, checkpoint, values


# ---- completions of their own -------------------------------------------------------------------


def read_scored_source(
    scores: Scores,
    analysis: Path,
    index: CompletionIndex,
    groups: np.ndarray,
    limit: int,
    vocabulary: Vocabulary,
) -> Source:
    """The completions that ``forkpoint dynamics`` sampled itself, as the last checkpoint saw them.

    Args:
        index: of ``scores.completions``.
        groups: numbers of the groups to show.
        limit: tokens of a group that are shown at most.
    """
    shown_N = index.shown_tokens(groups, limit)
    rows = list(_rows(index, groups))
    ids = {i for _, row in rows for i in row["token_ids"]}
    texts = read_texts(analysis / "vocabulary.parquet", ids)
    found: dict[int, ShownGroup] = {}
    for n, row in rows:
        name = int(index.group_N[n])
        group = found.setdefault(name, group_of(name, row))
        group.sampled += 1
        if shown_N[n] or not row["tokens"]:
            group.completions.append(_completion(row, int(shown_N[n]), texts, vocabulary))
    source = Source(
        key="dynamics",
        title="dynamics",
        folder="analysis/dynamics/",
        mark="",
        mark_name="",
        groups=list(found.values()),
        completions=len(index.tokens_N),
        tokens=int(index.tokens_N.sum()),
    )
    add_checkpoints(scores, source)
    for completion in source.shown:
        if completion.entropies_CT is not None:
            completion.entropies_T = completion.entropies_CT[-1]
    last = len(scores.names) - 1
    for completion, checkpoint, values_T in _scores(scores, "logprobs", source):
        if checkpoint == last and len(values_T) == completion.length:
            completion.logprobs_T = values_T[: len(completion.words_T)]
    return source


def _rows(index: CompletionIndex, groups: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    taken_N = np.isin(index.group_N, groups)
    for part in np.unique(index.part_N[taken_N]).tolist():
        names = (*HEADS, "completion", "token_ids")
        pairs = zip(index.rows_of(part), stream_rows(index.paths[part], names), strict=True)
        yield from ((int(n), row) for n, row in pairs if taken_N[n])


def _completion(
    row: dict[str, Any], shown: int, texts: dict[int, str], vocabulary: Vocabulary
) -> ShownCompletion:
    ids = row["token_ids"]
    alone = [texts.get(i, f"⟨{i}⟩").strip(" ") or texts[i] for i in ids]
    pieces = words(alone, row["completion"])[:shown]
    unknown = np.full(shown, np.nan, np.float32)
    return ShownCompletion(
        sample=row["sample"],
        reward=row["reward"],
        right=is_right(row["reward"]),
        truncated=row["finish_reason"] == "length",
        error=None,
        advantage=None,
        length=row["tokens"],
        words_T=np.asarray(
            [vocabulary.place(w, i) for w, i in zip(pieces, ids, strict=False)], np.int64
        ),
        entropies_T=unknown,
        logprobs_T=unknown,
        marked_T=np.zeros(shown, bool),
    )
