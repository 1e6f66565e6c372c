"""The token viewer's payload: numbers of many tokens as short text that tokens_data.js unpacks.

A stream of numbers is a typed array, deflated, in base64. Entropies and surprisals x >= 0 are kept
as q = round(8191 sqrt(x / top)), top the largest of them; x is then known to top / 8191 at worst
and to sqrt(x top) / 8191 in general: with a vocabulary of 152 000, whose entropies end at 11.9
nats, to 0.0015 nats, and to 0.0005 nats at 1 nat. Probabilities of alternatives are kept as
round(-ln p / 0.02): known to 1 %, down to 0.6 %.
"""

import base64
import json
import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from forkpoint.figures.histogram import COLOUR_EDGES
from forkpoint.figures.text import visible
from forkpoint.report.completions import (
    MOST_TOKENS,
    PAGE_BYTES_PER_TOKEN,
    ShownCompletion,
    ShownGroup,
    Source,
    read_sources,
)
from forkpoint.report.data import RunData
from forkpoint.runs import RunDirectory
from forkpoint.runs.vocabulary import read_texts

SURPRISAL_EDGES = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
"""Nats of -ln p(chosen)."""
CHANGE_EDGES = (0.05, 0.2, 0.5, 1.0)
"""Nats of change of entropy, either way; nearer to 0 than the first there is no colour."""
ADVANTAGE_EDGES = (0.01, 0.5, 1.0, 2.0)

LEVELS = 8191
"""The largest ``q``. Coarser than 16 bits, so that deflate finds something to save."""
MISSING = 65535
"""``q`` of a number that was not recorded or is not finite."""
LOG_STEP = 0.02
"""Nats between two codes of a probability."""
LEAST_PROBABILITY = math.exp(-255 * LOG_STEP)
"""0.0061: a less likely alternative has no code and is left out."""
TYPES = {1: "Uint8Array", 2: "Uint16Array", 4: "Uint32Array"}
"""JavaScript's name by the bytes of an item; it reads little-endian everywhere browsers run."""
PIECE = "·"
"""Shown for a token that adds no text: a piece of a character, a token that ends the answer."""


def viewer(run: RunData, tokens: int = MOST_TOKENS) -> dict[str, Any]:
    """What tokens.html.j2 needs: the sources with their numbers, and the payload.

    Args:
        tokens: of the page, about; of what is more, whole groups are drawn at random.

    Raises:
        RunError: a file of the run cannot be read.
    """
    sources = read_sources(run, tokens * PAGE_BYTES_PER_TOKEN)
    vocabulary = Vocabulary()
    streams = [_Streams(source, vocabulary) for source in sources]
    ids = np.unique(np.concatenate([np.zeros(0, np.int32), *(one.top_ids_A for one in streams)]))
    unseen = {i for i in ids.tolist() if not vocabulary.has_text(i)}
    for i, text in read_texts(RunDirectory(run.root).vocabulary_parquet, unseen).items():
        vocabulary.place(text, i)
    for i in ids.tolist():
        vocabulary.place_of_id(i)
    return {
        "sources": [_summary(source) for source in sources],
        "shown": sum(len(source.shown) for source in sources),
        "payload": script_json(payload(streams, vocabulary)),
    }


class Vocabulary:
    """(text as it stands, token id) -> its place in the page's one list of words."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, int], int] = {}
        self._places: dict[tuple[str, int], int] = {}
        self._first: dict[int, int] = {}

    def place(self, text: str, token_id: int) -> int:
        """The place of a token, which gets one if it has none; without a text it is a ``·``."""
        known = self._places.get((text, token_id))
        if known is None:
            shown = visible(text, newline="↵\n") or PIECE
            known = self.entries.setdefault((shown, token_id), len(self.entries))
            self._places[text, token_id] = known
            if shown != PIECE:
                self._first.setdefault(token_id, known)
        return known

    def has_text(self, token_id: int) -> bool:
        """Whether a token has a place with a text."""
        return token_id in self._first

    def place_of_id(self, token_id: int) -> int:
        """A place where this token has a text; a place without one if it was never seen."""
        known = self._first.get(token_id)
        if known is None:
            return self.entries.setdefault(("", token_id), len(self.entries))
        return known


class _Streams:
    """What a source's tokens show, one after the other, before the vocabulary is complete."""

    def __init__(self, source: Source, vocabulary: Vocabulary) -> None:
        self.source = source
        self.words_T = np.array(
            [
                vocabulary.place(piece, token_id)
                for one in source.shown
                for piece, token_id in zip(*_tokens(one), strict=True)
            ],
            np.int64,
        )
        counts, ids, codes = zip(_Likely.none(), *map(_likely, source.shown), strict=True)
        self.counts_T, self.top_ids_A, self.codes_A = map(np.concatenate, (counts, ids, codes))


def _tokens(one: ShownCompletion) -> tuple[Sequence[str], list[int]]:
    """Texts and ids of the tokens shown; the id stands where a text is not known."""
    ids = one.stored.completion.token_ids[: one.length].tolist()
    pieces = one.stored.pieces
    return (pieces[: one.length] if pieces is not None else [f"⟨{i}⟩" for i in ids]), ids


class _Likely(NamedTuple):
    """The most likely tokens beside the chosen one, of the tokens of a completion in order."""

    counts_T: np.ndarray
    """uint8 [T], how many a token has."""
    token_ids_A: np.ndarray
    """int32 [A], A the sum of the counts."""
    codes_A: np.ndarray
    """uint8 [A], ``probability_codes``."""

    @classmethod
    def none(cls, tokens: int = 0) -> "_Likely":
        return cls(np.zeros(tokens, np.uint8), np.zeros(0, np.int32), np.zeros(0, np.uint8))


def _likely(one: ShownCompletion) -> _Likely:
    """The tokens that were not chosen, down to ``LEAST_PROBABILITY``."""
    completion = one.stored.completion
    if completion.top_ids is None or completion.top_logprobs is None:
        return _Likely.none(one.length)
    ids_TK, logprobs_TK = completion.top_ids[: one.length], completion.top_logprobs[: one.length]
    chosen_T1 = completion.token_ids[: one.length, None]
    kept_TK = (ids_TK != chosen_T1) & (logprobs_TK >= math.log(LEAST_PROBABILITY))
    return _Likely(
        kept_TK.sum(1).astype(np.uint8), ids_TK[kept_TK], probability_codes(logprobs_TK[kept_TK])
    )


def _summary(source: Source) -> dict[str, Any]:
    checkpoints = source.checkpoints
    return {
        "key": source.key,
        "title": source.title,
        "folder": source.folder,
        "completions": source.completions,
        "tokens": source.tokens,
        "shown_completions": len(source.shown),
        "shown_tokens": sum(one.length for one in source.shown),
        "checkpoints": len(checkpoints.on_the_page) if checkpoints else 0,
        "checkpoints_scored": len(checkpoints.names) if checkpoints else 0,
    }


# ---- the payload --------------------------------------------------------------------------------


def payload(streams: Sequence[_Streams], vocabulary: Vocabulary) -> dict[str, Any]:
    """What tokens_data.js unpacks. Single numbers keep 4 significant digits; unknown: null.

    Args:
        vocabulary: complete: its size decides how its places are packed.
    """
    return {
        "levels": LEVELS,
        "missing": MISSING,
        "logStep": LOG_STEP,
        "edges": {
            "entropy": COLOUR_EDGES,
            "surprisal": SURPRISAL_EDGES,
            "change": CHANGE_EDGES,
            "advantage": ADVANTAGE_EDGES,
        },
        "words": [text for text, _ in vocabulary.entries],
        "ids": [token_id for _, token_id in vocabulary.entries],
        "sources": [_pack_source(one, vocabulary) for one in streams],
    }


def _pack_source(streams: _Streams, vocabulary: Vocabulary) -> dict[str, Any]:
    source = streams.source
    entropies_T = source.stream(lambda stored: stored.completion.entropies)
    if source.threshold is None:
        marked_T = source.stream(lambda stored: stored.selected) == 1
    else:
        marked_T = entropies_T >= np.float32(source.threshold)
    taken = source.checkpoints
    return {
        "key": source.key,
        "title": source.title,
        "mark": source.mark,
        "markName": source.mark_name,
        "checkpoints": [visible(taken.names[i]) for i in taken.on_the_page] if taken else [],
        "groups": [_pack_group(group) for group in source.groups],
        "words": pack_indices(streams.words_T, len(vocabulary.entries)),
        "entropy": _pack_nats(entropies_T),
        "surprisal": _pack_nats(-source.stream(lambda stored: stored.completion.logprobs)),
        "marked": pack_bits(marked_T),
        "scored": _pack_checkpoints(source),
        "alternatives": _pack_alternatives(streams, vocabulary),
    }


def _pack_nats(values_T: np.ndarray) -> dict[str, Any]:
    codes, top = quantise(values_T)
    return {"top": top, "codes": pack(codes)}


def _pack_checkpoints(source: Source) -> list[dict[str, Any]]:
    """One stream per checkpoint; nan for completions that were not scored."""
    taken = source.checkpoints.on_the_page if source.checkpoints else ()
    return [
        _pack_nats(
            np.concatenate(
                [
                    np.full(one.length, np.nan)
                    if one.entropies_CT is None
                    else one.entropies_CT[place]
                    for one in source.shown
                ]
            )
        )
        for place in range(len(taken))
    ]


def _pack_alternatives(streams: _Streams, vocabulary: Vocabulary) -> dict[str, Any] | None:
    ids, inverse = np.unique(streams.top_ids_A, return_inverse=True)
    if not len(ids):
        return None
    places = np.asarray([vocabulary.place_of_id(i) for i in ids.tolist()], np.int64)
    return {
        "counts": pack(streams.counts_T),
        "words": pack_indices(places[inverse], len(vocabulary.entries)),
        "codes": pack(streams.codes_A),
    }


def _pack_group(group: ShownGroup) -> dict[str, Any]:
    return {
        "number": group.number,
        "id": visible(group.prompt_id),
        "prompt": visible(group.prompt),
        "accepted": group.accepted,
        "sampled": group.sampled,
        "completions": [_pack_completion(completion) for completion in group.completions],
    }


def _pack_completion(one: ShownCompletion) -> list[Any]:
    """[sample, tokens shown, length, right, truncated, reward, advantage, error]."""
    stored, score = one.stored, one.stored.score
    return [
        stored.sample,
        one.length,
        len(stored.completion),
        score.right,
        int(stored.completion.finish_reason == "length"),
        _short(score.reward),
        _short(stored.advantage),
        visible(score.error) if score.error else None,
    ]


def _short(value: float | None) -> float | None:
    """4 significant digits; whole numbers without a decimal point."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded == int(rounded) else rounded


# ---- streams of numbers as text -----------------------------------------------------------------


def pack(values: np.ndarray) -> list[str]:
    """[type, base64 of the zlib stream] of unsigned integers, as tokens_data.js unpacks it."""
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    packed = zlib.compress(np.ascontiguousarray(little).tobytes())
    return [TYPES[values.dtype.itemsize], base64.b64encode(packed).decode()]


def pack_bits(values: np.ndarray) -> list[str]:
    """``pack`` of booleans, eight in a byte, the first in its lowest bit."""
    return pack(np.packbits(values.astype(bool), bitorder="little"))


def pack_indices(values: np.ndarray, size: int) -> list[str]:
    """``pack`` of indices below ``size``, in the smallest type that holds them."""
    small = size <= MISSING + 1
    return pack(values.astype(np.uint16 if small else np.uint32))


def quantise(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Codes of numbers >= 0 and their ``top``; x = top (q / 8191)^2.

    Numbers a rounding error below 0 become 0; those that are not finite become ``MISSING``.

    Returns:
        uint16, of the values' shape, and the largest value, 1 if there is none above 0.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    known = np.maximum(np.where(finite, values, 0.0), 0.0)
    top = float(known.max(initial=0.0)) or 1.0
    codes = np.rint(LEVELS * np.sqrt(known / top)).astype(np.uint16)
    return np.where(finite, codes, np.uint16(MISSING)), top


def probability_codes(logprobs: np.ndarray) -> np.ndarray:
    """uint8 codes of ln p, which must be at least ln ``LEAST_PROBABILITY``."""
    return np.clip(np.rint(np.asarray(logprobs, np.float64) / -LOG_STEP), 0, 255).astype(np.uint8)


def script_json(value: Any) -> Markup:
    """JSON that can stand inside a ``<script>`` element: pure ASCII, without ``< > &``.

    Nothing in it can end the element, open a comment or end a line; JSON.parse gives ``value``.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
