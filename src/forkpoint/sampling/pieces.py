"""What each token adds to the text, characters that are split over several tokens included.

A byte-level vocabulary cuts a rare character into several tokens, none of which is text alone. Here
the token that completes a character gets it and the ones before it get "", so that the pieces put
together are the decoded text.
"""

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
"""How decoders show bytes that are no character (yet)."""

LONGEST_WAIT = 8
"""Tokens after which bytes are given up on: a character has 4 bytes, and garbage has no end."""


class TokenPieces:
    """Cuts decoded completions into their tokens' texts."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._alone: dict[int, str] = {}
        self._after: dict[tuple[int, int], str] = {}

    def __call__(self, token_ids: Sequence[int]) -> list[str]:
        """One text per token, special tokens as they are written."""
        if not len(token_ids):
            return []
        whole = self._decode(token_ids)
        # Nearly always the tokens can be read one by one, with a memory of the vocabulary: as they
        # are (byte-level), or as they are after another token (a decoder that joins by spaces).
        alone = [self._text_alone(i) for i in token_ids]
        if "".join(alone) == whole:
            return alone
        first = token_ids[0]
        after = [alone[0], *(self._text_after(first, i) for i in token_ids[1:])]
        return after if "".join(after) == whole else self._step_by_step(token_ids)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(token_ids))

    def _text_alone(self, token_id: int) -> str:
        if token_id not in self._alone:
            self._alone[token_id] = self._decode([token_id])
        return self._alone[token_id]

    def _text_after(self, first: int, token_id: int) -> str:
        key = (first, token_id)
        if key not in self._after:
            self._after[key] = _added(self._text_alone(first), self._decode(key))
        return self._after[key]

    def _step_by_step(self, token_ids: Sequence[int]) -> list[str]:
        """Decode a few tokens at a time: those whose text is out already, for their context, and
        those that wait for their character to be completed."""
        texts = [""] * len(token_ids)
        context, waiting = 0, 0  # token_ids[context:waiting] are out, [waiting:index + 1] wait
        for index in range(len(token_ids)):
            known = self._decode(token_ids[context:waiting]) if waiting > context else ""
            text = self._decode(token_ids[context : index + 1])
            last = index + 1 == len(token_ids) or index + 1 - waiting >= LONGEST_WAIT
            if text.endswith(REPLACEMENT) and not last:
                continue
            texts[index] = _added(known, text)
            context, waiting = waiting, index + 1
        return texts


def _added(known: str, text: str) -> str:
    """What ``text`` has after the part it shares with ``known``."""
    shared = next((i for i, (a, b) in enumerate(zip(known, text, strict=False)) if a != b), None)
    return text[min(len(known), len(text)) if shared is None else shared :]
