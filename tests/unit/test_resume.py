"""Finished pieces are not made again, and not mixed with those of other settings."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from forkpoint.errors import RunError
from forkpoint.runs.atomic import write_text
from forkpoint.runs.results import Estimate
from forkpoint.runs.resume import Pieces

SETTINGS = {"model": {"path": "lab:game"}, "top_k": 5, "grid": (1, 2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    text: str
    found: tuple[Estimate, ...]


WORD = Word(text="é\u2028", found=(Estimate(value=1.0, low=None, high=None, n=1),))


def test_a_piece_is_made_once(tmp_path: Path) -> None:
    made: list[str] = []

    def make() -> Word:
        made.append("")
        return WORD

    for _ in range(2):
        pieces = Pieces.open(tmp_path / "pieces", SETTINGS)
        assert pieces.done("word.json") == bool(made)
        assert pieces.get("word.json", Word, make) == WORD
    assert made == [""]
    assert json.loads((tmp_path / "pieces" / "settings.json").read_text())["grid"] == [1, 2]


@pytest.mark.parametrize("key", ["word.json", "completions/part_00000.parquet"])
def test_other_settings_are_refused_once_there_is_a_piece(tmp_path: Path, key: str) -> None:
    Pieces.open(tmp_path, {"top_k": 4})
    pieces = Pieces.open(tmp_path, SETTINGS)  # a start that failed left nothing else
    write_text(pieces.path(key), "")
    Pieces.open(tmp_path, SETTINGS)
    with pytest.raises(RunError) as caught:
        Pieces.open(tmp_path, {"model": {"path": "other"}, "grid": [1, 2]})
    assert str(caught.value) == (
        f"{tmp_path} was started with other settings (model.path: 'lab:game' -> 'other', "
        "top_k: 5 -> None): give the same ones, choose another --run-dir, or delete "
        f"{tmp_path} to start it anew"
    )
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(RunError, match=r"cannot read .*settings.json"):
        Pieces.open(tmp_path, SETTINGS)


@pytest.mark.parametrize("text", ["{", '{"text": 1, "found": []}', '{"found": []}'])
def test_a_broken_piece_is_named(tmp_path: Path, text: str) -> None:
    pieces = Pieces.open(tmp_path, SETTINGS)
    write_text(pieces.path("word.json"), text)
    with pytest.raises(RunError, match=r"word.json cannot be read: .*; delete it to measure it"):
        pieces.get("word.json", Word, lambda: WORD)
