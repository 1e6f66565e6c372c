"""The texts of single tokens: put together they are the decoded text, whatever the decoder does."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.lab import GameWorld
from forkpoint.lab.base_policy import build_tokenizer
from forkpoint.sampling.pieces import LONGEST_WAIT, TokenPieces


class Bytes:
    """Token i is the byte i; ids from 256 on are the words after it, as a byte-level BPE has."""

    words = (" the", "the", "€", "<eos>")

    def decode(self, ids: Sequence[int]) -> str:
        raw = b"".join(bytes([i]) if i < 256 else self.words[i - 256].encode() for i in ids)
        return raw.decode("utf-8", "replace")


class Spaced:
    """Joins words by spaces, and glues a full stop to the word before it."""

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join("." if i == 0 else f"w{i}" for i in ids).replace(" .", ".")


def of_bytes(text: str) -> list[int]:
    return list(text.encode())


def test_a_character_goes_to_the_token_that_completes_it() -> None:
    # é is 2 bytes, € is 3, 😀 is 4
    texts = TokenPieces(Bytes())(of_bytes("aé€😀b"))
    assert texts == ["a", "", "é", "", "", "€", "", "", "", "😀", "b"]


def test_whole_words_keep_their_spaces() -> None:
    assert TokenPieces(Bytes())([257, 256, 258, 65, 259]) == ["the", " the", "€", "A", "<eos>"]


@given(st.text(st.characters(codec="utf-8")), st.integers(0, 3))
def test_pieces_of_a_text_make_the_text(text: str, word: int) -> None:
    ids = [*of_bytes(text), 256 + word, *of_bytes(text)]
    texts = TokenPieces(Bytes())(ids)
    assert "".join(texts) == Bytes().decode(ids)
    # a byte that completes nothing has no text of its own (U+FFFD itself is a character)
    if "\ufffd" not in text:
        characters = [t for t in texts if t]
        assert characters == [*text, Bytes.words[word], *text]


def test_bytes_that_are_no_character_end_up_somewhere() -> None:
    texts = TokenPieces(Bytes())([0xFF, 65, 0xE2])
    assert "".join(texts) == "\ufffdA\ufffd"
    assert texts[2] == "\ufffd"


def test_endless_garbage_is_not_waited_for() -> None:
    decoded: list[int] = []

    class Counting(Bytes):
        def decode(self, ids: Sequence[int]) -> str:
            decoded.append(len(ids))
            return super().decode(ids)

    ids = [0xFF] * 200
    texts = TokenPieces(Counting())(ids + of_bytes("é"))
    assert "".join(texts).endswith("é")
    assert max(n for n in decoded if n < 200) <= 2 * LONGEST_WAIT


@pytest.mark.parametrize(
    ("ids", "texts"),
    [
        ([1, 2, 3], ["w1", " w2", " w3"]),
        ([1, 0, 2, 0], ["w1", ".", " w2", "."]),
        ([0, 1], [".", " w1"]),
        ([], []),
        ([4], ["w4"]),
    ],
)
def test_decoders_that_add_spaces(ids: list[int], texts: list[str]) -> None:
    assert TokenPieces(Spaced())(ids) == texts


@given(st.lists(st.integers(0, 60), max_size=30))
def test_the_laboratory_is_read_back(ids: list[int]) -> None:
    tokenizer: Any = LABORATORY
    texts = TokenPieces(tokenizer)(ids)
    assert "".join(texts) == tokenizer.decode(ids)
    assert [text.strip() for text in texts] == tokenizer.convert_ids_to_tokens(ids)


LABORATORY = build_tokenizer(GameWorld())
