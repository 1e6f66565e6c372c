"""The completions of one recorded step, as the viewer shows them; only what is shown is read."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from forkpoint.report.completions import (
    PIECE,
    ShownCompletion,
    ShownGroup,
    Sizes,
    Source,
    Vocabulary,
)
from forkpoint.report.steps import StepFile
from forkpoint.runs.columns import stream_columns
from forkpoint.runs.rollouts import stored_verdict

ROWS = 64
"""Completions in memory at a time."""
COLUMNS = (
    *("serial", "sample", "prompt_id", "prompt", "completion", "reward", "reward_parts"),
    *("error", "advantage", "accepted", "finish_reason"),
    *("token_ids", "tokens", "logprobs", "entropies", "selected"),
)


def is_right(verdict: float | None) -> bool | None:
    """Whether the verifier gave full marks, as the evaluation counts them; None: it failed."""
    return None if verdict is None else verdict >= 1.0


def rollout_sizes(file: StepFile) -> tuple[np.ndarray, Sizes]:
    """The serials of the step's groups, ascending, and how large the groups are."""
    serials, lengths, prompts = [], [], []
    for batch in stream_columns(file.path, ["serial", "token_ids", "prompt"], rows=ROWS):
        serials += batch.column(0).to_pylist()
        lengths += [n or 0 for n in batch.column(1).value_lengths().to_pylist()]
        prompts += [len((text or "").encode()) for text in batch.column(2).to_pylist()]
    unique, first, group = np.unique(
        np.asarray(serials, np.int64), return_index=True, return_inverse=True
    )
    tokens_P = np.bincount(group, weights=lengths, minlength=len(unique)).astype(np.int64)
    return unique, Sizes(
        completions_P=np.bincount(group, minlength=len(unique)),
        tokens_P=tokens_P,
        prompt_bytes_P=np.asarray(prompts, np.int64)[first],
    )


def read_rollout_source(
    file: StepFile, sizes: Sizes, serials: np.ndarray, limit: int, vocabulary: Vocabulary
) -> Source:
    """The groups with the given serials, each answer with its tokens.

    Args:
        limit: tokens of a group that are shown at most.
    """
    groups: dict[int, ShownGroup] = {}
    left: dict[int, int] = {}
    for row in _rows(file, serials):
        serial = row["serial"]
        group = groups.setdefault(serial, _group(row))
        group.sampled += 1
        room = left.setdefault(serial, limit)
        if room > 0:
            group.completions.append(_completion(row, room, vocabulary))
            left[serial] -= len(row["token_ids"])
    for group in groups.values():
        group.completions.sort(key=lambda completion: completion.sample)
    return Source(
        key=f"step-{file.step}",
        title=f"step {file.step}",
        folder="rollouts/",
        mark="got a policy gradient",
        mark_name="selected",
        groups=list(groups.values()),
        completions=int(sizes.completions_P.sum()),
        tokens=int(sizes.tokens_P.sum()),
    )


def _rows(file: StepFile, serials: np.ndarray) -> Iterator[dict[str, Any]]:
    for batch in stream_columns(file.path, COLUMNS, optional=["verdict"], rows=ROWS):
        wanted = np.isin(batch.column(0).to_numpy(zero_copy_only=False), serials)
        for i in np.flatnonzero(wanted):
            yield batch.slice(int(i), 1).to_pylist()[0]


def _group(row: Mapping[str, Any]) -> ShownGroup:
    return ShownGroup(
        number=row["serial"],
        prompt_id=row["prompt_id"],
        prompt=row["prompt"],
        accepted=row["accepted"],
        sampled=0,
    )


def _completion(row: Mapping[str, Any], limit: int, vocabulary: Vocabulary) -> ShownCompletion:
    length = len(row["token_ids"])
    shown = slice(min(length, limit))
    pieces = words(row["tokens"], row["completion"])[shown]
    entropies = row["entropies"] or [math.nan] * length
    return ShownCompletion(
        sample=row["sample"],
        reward=row["reward"],
        right=is_right(stored_verdict(row)),
        truncated=row["finish_reason"] == "length",
        error=row["error"],
        advantage=row["advantage"],
        length=length,
        words_T=np.asarray(
            [vocabulary.place(w, i) for w, i in zip(pieces, row["token_ids"][shown], strict=True)],
            np.int64,
        ),
        entropies_T=_floats(entropies)[shown],
        logprobs_T=_floats(row["logprobs"])[shown],
        marked_T=np.asarray(row["selected"], bool)[shown],
    )


def _floats(values: Sequence[float | None]) -> np.ndarray:
    """float32, nan for None."""
    return np.asarray(values, np.float32)


# ---- the words of a completion ------------------------------------------------------------------


def words(tokens: Sequence[str], completion: str) -> list[str]:
    """Each token as it stands in the text: with the space before it that decoding it alone lost.

    The tokens are looked for in the completion one after the other, with nothing but white space
    between. Tokens that are pieces of one character (each decodes to U+FFFD) are shown as that
    character and then ``·``; tokens that are not in the text (end of sequence) as they are.
    """
    out: list[str] = []
    at = 0
    pieces: list[int] = []
    for token in tokens:
        found = completion.find(token, at) if token and "\ufffd" not in token else -1
        gap = completion[at:found] if found >= 0 else ""
        if found < 0 or (gap.strip() and not pieces):
            if "\ufffd" in token:
                pieces.append(len(out))
            out.append(token)
            continue
        if pieces and gap:
            _fill(out, pieces, gap)
            gap = ""
        out.append(gap + token)
        at, pieces = found + len(token), []
    if pieces and completion[at:]:
        _fill(out, pieces, completion[at:])
    return out


def _fill(out: list[str], pieces: Sequence[int], text: str) -> None:
    out[pieces[0]] = text
    for piece in pieces[1:]:
        out[piece] = PIECE
