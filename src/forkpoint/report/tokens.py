"""Which completions the page shows, and their tokens as compact JSON for report.js."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forkpoint.report.data import StepRows, is_number
from forkpoint.report.text import visible
from forkpoint.runs import RolloutRow

COLOUR_EDGES = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Nats where the next of the nine token colours begins; the same in every report."""
SHOWN_PER_GROUP = 6
MOST_TOKENS_OF_COMPLETION = 4000
MOST_TOKENS = 60_000
"""Of the page, which keeps it below 2 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownGroup:
    """Completions of one prompt. Made by ``choose``."""

    everything: list[RolloutRow]
    shown: list[RolloutRow]


def is_right(row: RolloutRow) -> bool | None:
    """Whether the verifier, the first reward part, gave full marks; None without a score.

    The evaluation counts right answers the same way. A row without parts goes by its reward.
    """
    parts = list(row.reward_parts.values())
    score = parts[0] if parts else row.reward
    return None if score is None else score >= 1.0


# ---- the sample ---------------------------------------------------------------------------------


def choose(steps: Sequence[StepRows], completions: int) -> list[ShownGroup]:
    """At most ``completions`` completions: the last step first, groups of mixed rewards first.

    The steps share the number evenly. At most ``SHOWN_PER_GROUP`` of a group are shown, right,
    wrong and truncated ones in turn, and in the order they were sampled. No more groups are taken
    once ``MOST_TOKENS`` is reached.
    """
    chosen: list[ShownGroup] = []
    left, tokens = completions, 0
    for done, step in enumerate(reversed(steps)):
        share = math.ceil(left / (len(steps) - done))
        for rows in _groups(step.rows):
            shown = _in_turn(rows)[: min(share, SHOWN_PER_GROUP)]
            size = sum(min(len(r.token_ids), MOST_TOKENS_OF_COMPLETION) for r in shown)
            if not shown or (chosen and tokens + size > MOST_TOKENS):
                break
            shown.sort(key=lambda row: row.sample)
            chosen.append(ShownGroup(everything=rows, shown=shown))
            share, left, tokens = share - len(shown), left - len(shown), tokens + size
    return chosen


def _groups(rows: Sequence[RolloutRow]) -> list[list[RolloutRow]]:
    """By serial; groups whose rewards differ come first."""
    groups: defaultdict[int, list[RolloutRow]] = defaultdict(list)
    for row in rows:
        groups[row.serial].append(row)
    return sorted(
        (sorted(g, key=lambda row: row.sample) for g in groups.values()),
        key=lambda g: (len({row.reward for row in g}) == 1, g[0].serial),
    )


def _in_turn(rows: Sequence[RolloutRow]) -> list[RolloutRow]:
    """Right, wrong and truncated completions by turns."""
    kinds: defaultdict[object, int] = defaultdict(int)
    turns = []
    for row in rows:
        kind = "truncated" if row.finish_reason == "length" else is_right(row)
        turns.append((kinds[kind], row.sample, row))
        kinds[kind] += 1
    return [row for _, _, row in sorted(turns, key=lambda turn: turn[:2])]


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
        out[piece] = "·"


# ---- the payload --------------------------------------------------------------------------------


class Vocabulary:
    """(word as it stands, token text, token id) -> its place in the page's one list."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str, int], int] = {}

    def place(self, word: str, text: str, token_id: int) -> int:
        key = (visible(word, newline="↵\n"), visible(text, newline="↵"), token_id)
        return self.entries.setdefault(key, len(self.entries))


def payload(groups: Sequence[ShownGroup], steps: Sequence[StepRows]) -> dict[str, Any]:
    """What report.js draws. Numbers keep 4 significant digits; unknown ones are null."""
    sorted_entropies = {step.step: np.sort(step.entropies()) for step in steps}
    vocabulary = Vocabulary()
    packed = [_pack_group(group, vocabulary, sorted_entropies) for group in groups]
    return {"edges": COLOUR_EDGES, "vocabulary": list(vocabulary.entries), "groups": packed}


def _pack_group(
    group: ShownGroup, vocabulary: Vocabulary, sorted_entropies: dict[int, np.ndarray]
) -> dict[str, Any]:
    first = group.everything[0]
    shown = {row.sample for row in group.shown}
    return {
        "step": first.step,
        "id": visible(first.prompt_id),
        "prompt": visible(first.prompt),
        "accepted": first.accepted,
        "all": [[r.sample, is_right(r), r.sample in shown] for r in group.everything],
        "completions": [
            _pack_completion(row, vocabulary, sorted_entropies[row.step]) for row in group.shown
        ],
    }


def _pack_completion(
    row: RolloutRow, vocabulary: Vocabulary, sorted_entropies: np.ndarray
) -> dict[str, Any]:
    cut = slice(MOST_TOKENS_OF_COMPLETION)
    words_T = words(row.tokens, row.completion)[cut]
    entropies = list(row.entropies or [None] * len(row.token_ids))
    known = [h for h in entropies if is_number(h)]
    return {
        "sample": row.sample,
        "reward": _short(row.reward),
        "right": is_right(row),
        "truncated": row.finish_reason == "length",
        "error": visible(row.error) if row.error else None,
        "advantage": _short(row.advantage),
        "length": len(row.token_ids),
        "mean": _short(sum(known) / len(known)) if known else None,
        "word": [
            vocabulary.place(word, text, token)
            for word, text, token in zip(words_T, row.tokens[cut], row.token_ids[cut], strict=True)
        ],
        "entropy": [_short(h) for h in entropies[cut]],
        "logprob": [_short(p) for p in row.logprobs[cut]],
        "percentile": list(_percentiles(entropies[cut], sorted_entropies)),
        "selected": "".join("1" if s else "0" for s in row.selected[cut]),
    }


def _percentiles(
    entropies: Sequence[float | None], sorted_entropies: np.ndarray
) -> Iterator[float | None]:
    """The percentage of the step's tokens with a lower entropy, to one decimal."""
    for h in entropies:
        if h is None or not is_number(h):
            yield None
        else:
            below = int(np.searchsorted(sorted_entropies, h, side="left"))
            yield round(100 * below / len(sorted_entropies), 1)


def _short(value: float | None) -> float | None:
    """4 significant digits; whole numbers without a decimal point."""
    if value is None or not is_number(value):
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded == int(rounded) else rounded
