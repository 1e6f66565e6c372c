"""Words of an analysis: clouds that do not overlap, contexts that are the store's, tables."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.analysis.words import Word, write_words
from forkpoint.errors import RunError
from forkpoint.figures.words import SMALLEST, WIDTH, CloudWord, pack
from forkpoint.report.words import Context, find_contexts
from forkpoint.runs import RunDirectory, completions
from forkpoint.runs.completions import part_files
from forkpoint.runs.results import write_result
from tests.report_page import page_of
from tests.stored import make_completion, make_pattern, make_store

# ---- clouds -------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=40), st.floats(0, 8)), min_size=1, max_size=60)
)
def test_words_of_a_cloud_are_all_there_and_apart(words: list[tuple[str, float]]) -> None:
    placed = pack([CloudWord(text, value, "") for text, value in words])
    assert sorted(p.word.text for p in placed) == sorted(text for text, _ in words)
    for p in placed:
        assert abs(p.x) + p.width / 2 <= WIDTH / 2 + 1e-6
        assert p.size >= SMALLEST
    for a, b in combinations(placed, 2):
        beside = abs(a.x - b.x) >= (a.width + b.width) / 2 - 1e-6
        above = abs(a.y - b.y) >= (a.height + b.height) / 2 - 1e-6
        assert beside or above


def test_size_is_proportional_to_the_value_down_to_the_smallest() -> None:
    placed = pack([CloudWord(w, v, "") for w, v in (("low", 0.01), ("half", 1.0), ("wait", 2.0))])
    sizes = {p.word.text: p.size for p in placed}
    assert sizes["wait"] == pytest.approx(2 * sizes["half"])
    assert sizes["low"] == SMALLEST
    assert [p.word.text for p in placed] == ["wait", "half", "low"]


# ---- contexts -----------------------------------------------------------------------------------


def write_store(root: Path, parts: Sequence[Sequence[Sequence[str]]]) -> list[Path]:
    """Parts of completions of token texts."""
    return make_store(
        root,
        *(
            [make_completion(10 * number + i, texts=texts) for i, texts in enumerate(part)]
            for number, part in enumerate(parts)
        ),
    )


def contexts(root: Path, words: Sequence[str]) -> dict[str, list[Context]]:
    return find_contexts(part_files(root / "completions" / "analysis"), words)


def test_contexts_by_hand(tmp_path: Path) -> None:
    long = [str(i) for i in range(8)]
    parts = [
        [["x", " b", " x"], [*long, "x", *long], ["q", "x"]],
        [["x", "z"]],
    ]
    write_store(tmp_path, parts)
    found = contexts(tmp_path, ["x", "7", "z", "never"])
    # One of each completion, six neighbours a side, none from another completion.
    assert found["x"] == [
        Context("", "x", " b x"),
        Context("234567", "x", "012345"),
        Context("q", "x", ""),
    ]
    assert found["7"] == [Context("123456", "7", "x01234")]
    assert found["z"] == [Context("x", "z", "")]
    assert found.keys() == {"x", "7", "z"}


@pytest.mark.parametrize("tokens", [1, 7, 13, 50])
def test_contexts_do_not_depend_on_the_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    parts = [
        [[f"{'abc'[(i * i + k) % 3]}{i % 2}" for i in range(5 + 4 * k)] for k in range(p + 3)]
        for p in range(3)
    ]
    write_store(tmp_path / "a", parts)
    words = ["a0", "b1", "c0", "a1"]
    whole = contexts(tmp_path / "a", words)
    assert sum(map(len, whole.values())) > 6
    monkeypatch.setattr(completions, "ROW_GROUP_TOKENS", tokens)
    write_store(tmp_path / "b", parts)
    assert contexts(tmp_path / "b", words) == whole


def test_reading_ends_when_every_word_has_its_contexts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(tmp_path, [[["x"], ["x"], ["x"]], [["x"]]])
    (tmp_path / "completions/analysis/part_00001.parquet").write_bytes(b"not parquet")
    assert len(contexts(tmp_path, ["x"])["x"]) == 3
    with pytest.raises(RunError, match="part_00001"):
        contexts(tmp_path, ["x", "never"])


# ---- tables -------------------------------------------------------------------------------------


WORDS = (
    ("wait", 120, 1.5, 2.0),
    (" so", 110, 0.75, 1.0),
    ("ing", 130, 0.01, 0.03),
    ("+", 105, 0.0, 0.0),
)
"""(text, count, mean, p90), by falling mean."""  # fmt: skip


def analysed(
    root: Path,
    words: Sequence[tuple[str, int, float, float]],
    store: Sequence[Sequence[Sequence[str]]] = (),
) -> Path:
    """A run directory with a table of words, and completions that have some of them."""
    lines = [
        Word(token_id=i, text=text, count=count, mean=mean, p90=p90)
        for i, (text, count, mean, p90) in enumerate(words)
    ]
    write_words(RunDirectory(root).words_parquet, lines)
    write_result(root, make_pattern())
    write_store(root, store)
    return root


def test_words_of_the_file_stand_on_the_page(tmp_path: Path) -> None:
    store = [[["so", " wait", " wait", " so"], ["wait"]], [["1", "+", "ing"]]]
    page = page_of(analysed(tmp_path / "run", WORDS, store))
    text = page.words("forks")
    assert "The 4 token strings that occur more than 100 times" in text
    assert "Highest mean entropy 2 words" in text
    # (wait 1.5, so 0.75) and, from the lowest up, (+ 0, ing 0.01)
    order = [
        text.index(line)
        for line in (
            "wait 120 1.50 2.00",
            "␣so 110 0.750 1.00",
            "+ 105 0 0",
            "ing 130 0.0100 0.0300",
        )
    ]
    assert order == sorted(order)
    values = [
        a["data-value"] for tag, a in page.elements if tag in ("td", "th") and "data-value" in a
    ]
    assert values[:8] == ["wait", "120", "1.5", "2.0", "␣so", "110", "0.75", "1.0"]
    # The word as the store has it, in bold, between its neighbours
    assert page.texts["b"].count("wait") == 1
    assert " so" in page.texts["b"]
    assert "so wait wait so" in text
    assert "wait: mean 1.5 nats, 120 times" in page.source  # the cloud


@pytest.mark.parametrize(
    ("kinds", "sizes"), [(1, (1,)), (5, (3, 2)), (150, (75, 75)), (400, (100, 100))]
)
def test_no_word_is_both_high_and_low(tmp_path: Path, kinds: int, sizes: tuple[int, ...]) -> None:
    words = [(f"w{i}", 101, float(kinds - i), float(kinds)) for i in range(kinds)]
    page = page_of(analysed(tmp_path / "run", words))
    tables = page.source.split("<table")[1:]
    rows = [t.count('<code title="id') for t in tables if "data-sortable" in t]
    assert rows == list(sizes)
    shown = [c for c in page.texts["code"] if c.startswith("w")]
    assert len(shown) == len(set(shown)) == sum(sizes)
    assert shown[0] == "w0"
    if len(sizes) == 2:
        assert shown[sizes[0]] == f"w{kinds - 1}"
