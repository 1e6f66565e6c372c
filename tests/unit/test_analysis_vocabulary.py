"""The vocabulary's texts are what tokens add to a text, whatever the decoder does with spaces."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from forkpoint.lab import GameWorld
from forkpoint.lab.base_policy import build_tokenizer
from forkpoint.runs import vocabulary
from forkpoint.runs.vocabulary import ensure_vocabulary, read_texts, vocabulary_texts


def byte_level() -> Any:
    """As GPT-2 and Qwen spell tokens: Ġ is a space, Ã and © are the two bytes of é."""
    ids = {token: i for i, token in enumerate(["<s>", "a", "Ġa", "Ã", "©", "Ċ"])}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def metaspace() -> Any:
    """As Llama 2 spells tokens: the space of a text's first token is dropped by the decoder."""
    tokenizer = Tokenizer(models.WordLevel({"▁go": 0, "▁left": 1, "ing": 2}, "ing"))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_texts_by_hand() -> None:
    assert vocabulary_texts(byte_level()) == ["<s>", "a", " a", "\ufffd", "\ufffd", "\n"]
    assert metaspace().decode([0]) == "go"
    assert vocabulary_texts(metaspace()) == [" go", " left", "ing"]


def test_texts_of_a_file_come_back(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.parquet"
    assert read_texts(path, {1}) == {}
    ensure_vocabulary(path, byte_level())
    assert read_texts(path, {1, 3, 2, 77}) == {1: "a", 2: " a", 3: "\ufffd"}
    ensure_vocabulary(path, None)  # it is there


@given(st.lists(st.floats(0, 1, exclude_max=True)))
def test_texts_put_together_are_the_text(places: list[float]) -> None:
    tokenizer = build_tokenizer(GameWorld())
    texts = vocabulary_texts(tokenizer)
    ids = [int(place * len(texts)) for place in places]
    word = texts.index(" pick")
    assert "".join(texts[i] for i in ids) == tokenizer.decode([word, *ids])[len("pick") :]


def test_a_large_vocabulary_is_decoded_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = vocabulary_texts(build_tokenizer(GameWorld()))
    monkeypatch.setattr(vocabulary, "BATCH", 7)
    assert vocabulary_texts(build_tokenizer(GameWorld())) == whole
    assert len(whole) == len(build_tokenizer(GameWorld()))
