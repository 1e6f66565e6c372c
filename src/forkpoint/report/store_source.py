"""The completions of the token store, as the viewer shows them; only what is shown is read."""

from typing import Any

import numpy as np

from forkpoint.report.completion_index import HEADS, CompletionIndex, group_of, stream_rows
from forkpoint.report.completions import ShownCompletion, ShownGroup, Source, Vocabulary
from forkpoint.report.rollout_source import is_right
from forkpoint.report.text import number
from forkpoint.report.token_rows import TokenRows, read_token_rows
from forkpoint.runs.tokens import TokenStore


def read_store_source(
    store: TokenStore,
    index: CompletionIndex,
    groups: np.ndarray,
    limit: int,
    vocabulary: Vocabulary,
) -> Source:
    """The groups with the given numbers, each answer with its tokens.

    Args:
        index: of the store's whole parts.
        limit: tokens of a group that are shown at most.

    Raises:
        RunError: a part's tokens are not those of its completions.
    """
    shown_N = index.shown_tokens(groups, limit)
    taken_N = np.isin(index.group_N, groups)
    found: dict[int, ShownGroup] = {}
    for part in np.unique(index.part_N[taken_N]).tolist():
        n = index.rows_of(part)
        path = store.tokens_path(store.parts()[part])
        rows = read_token_rows(path, _wanted(index.tokens_N[n], shown_N[n]), vocabulary)
        ends = np.cumsum(shown_N[n])
        offsets = np.concatenate([[0], np.cumsum(rows.counts_T)])
        for i, head in enumerate(stream_rows(index.paths[part], HEADS)):
            if not taken_N[n[i]]:
                continue
            name = int(index.group_N[n[i]])
            group = found.setdefault(name, group_of(name, head))
            group.sampled += 1
            if shown_N[n[i]] or not head["tokens"]:
                start = int(ends[i] - shown_N[n[i]])
                one = rows.cut(start, int(ends[i]), offsets)
                group.completions.append(_completion(head, one))
    return Source(
        key="analysis",
        title="analysis",
        folder="analysis/",
        mark="",
        mark_name="",
        groups=list(found.values()),
        completions=len(index.tokens_N),
        tokens=int(index.tokens_N.sum()),
    )


def _wanted(tokens_n: np.ndarray, shown_n: np.ndarray) -> np.ndarray:
    """bool [sum of tokens], the first ``shown_n`` of each completion's ``tokens_n``."""
    starts_n = np.cumsum(tokens_n) - tokens_n
    position_T = np.arange(int(tokens_n.sum())) - np.repeat(starts_n, tokens_n)
    return position_T < np.repeat(shown_n, tokens_n)


def _completion(head: dict[str, Any], rows: TokenRows) -> ShownCompletion:
    return ShownCompletion(
        sample=head["sample"],
        reward=head["reward"],
        right=is_right(head["reward"]),
        truncated=head["finish_reason"] == "length",
        error=None,
        advantage=None,
        length=head["tokens"],
        words_T=rows.words_T,
        entropies_T=rows.entropies_T,
        logprobs_T=rows.logprobs_T,
        marked_T=np.zeros(len(rows.words_T), bool),
        alternatives=rows.alternatives(),
    )


# ---- the line under a token ---------------------------------------------------------------------


def mark_forks(source: Source, threshold: float | None) -> None:
    """Mark the tokens whose entropy reaches the threshold; without one, the top fifth shown."""
    source.mark_name, source.mark = "top fifth", "is in the top fifth by entropy"
    if threshold is None:
        entropies_T = source.stream("entropies_T")
        known_T = entropies_T[np.isfinite(entropies_T)]
        threshold = float(np.quantile(known_T, 0.8)) if len(known_T) else 0.0
    else:
        source.mark_name = "above threshold"
        source.mark = f"has at least {number(threshold)} nats, the threshold of the analysis"
    for completion in source.shown:
        completion.marked_T = completion.entropies_T >= np.float32(threshold)
