"""Words of an analysis: clouds that do not overlap, contexts that are the store's, tables."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.errors import RunError
from forkpoint.report.svg import power_label, symlog, symlog_ticks
from forkpoint.report.wordcloud import GAP, SMALLEST, WIDTH, CloudWord, pack, text_width, word_cloud
from forkpoint.report.words import Context, find_contexts
from forkpoint.runs import completions
from forkpoint.runs.completions import part_files
from tests.analysis_runs import SUMMARY, write_analysis, write_store
from tests.report_page import page_of

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


def test_a_cloud_is_the_same_each_time_and_tells_the_numbers() -> None:
    words = [CloudWord(f"w{i}", 1 / (1 + i), f"mean {i}") for i in range(100)]
    cloud = str(word_cloud(words, "a cloud"))
    assert cloud == str(word_cloud(list(words), "a cloud"))
    assert "<title>mean 99</title>" in cloud
    # The browser has to fit the text into the width it was placed by.
    first = pack(words)[0]
    assert first.width - GAP == pytest.approx(text_width("w0") * first.size)
    assert f'textLength="{first.width - GAP:.1f}"'.replace('.0"', '"') in cloud


def test_a_cloud_of_zeros_and_of_nothing() -> None:
    placed = pack([CloudWord(w, 0.0, "") for w in "abc"])
    assert [p.size for p in placed] == [SMALLEST] * 3
    assert "<text" not in str(word_cloud([], "nothing"))


# ---- contexts -----------------------------------------------------------------------------------


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


def test_words_of_the_file_stand_on_the_page(tmp_path: Path) -> None:
    store = [[["so", " wait", " wait", " so"], ["wait"]], [["1", "+", "ing"]]]
    page = page_of(write_analysis(tmp_path / "run", store=store, summary=SUMMARY))
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
    assert "wait: mean 1.5 nats, 120 times" in page.titles()


@pytest.mark.parametrize(
    ("kinds", "sizes"), [(1, (1,)), (5, (3, 2)), (150, (75, 75)), (400, (100, 100))]
)
def test_no_word_is_both_high_and_low(tmp_path: Path, kinds: int, sizes: tuple[int, ...]) -> None:
    words = [(f"w{i}", 101, float(kinds - i), float(kinds)) for i in range(kinds)]
    page = page_of(write_analysis(tmp_path / "run", words=words, summary=SUMMARY))
    tables = page.source.split("<table")[1:]
    rows = [t.count('<code title="id') for t in tables if "data-sortable" in t]
    assert rows == list(sizes)
    shown = [c for c in page.texts["code"] if c.startswith("w")]
    assert len(shown) == len(set(shown)) == sum(sizes)
    assert shown[0] == "w0"
    if len(sizes) == 2:
        assert shown[sizes[0]] == f"w{kinds - 1}"


# ---- axes ---------------------------------------------------------------------------------------


def test_symmetric_logarithm_by_hand() -> None:
    found = [symlog(v, 0.2) for v in (0, 0.1, 0.2, 2.0, 20.0, -2.0)]
    assert found == pytest.approx([0, 0.5, 1, 2, 3, -2])
    assert symlog_ticks(-2e-4, 0.05, 1e-4) == pytest.approx([-1e-4, 0, 1e-4, 1e-3, 1e-2])
    labels = [power_label(v) for v in (-1e-3, -1e-4, 0, 1e-4, 0.01, 1, 10)]
    assert labels == ["−10⁻³", "−10⁻⁴", "0", "10⁻⁴", "0.01", "1", "10"]


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(1e-6, 10))
def test_symmetric_logarithm_keeps_the_order_and_the_sign(
    a: float, b: float, linear: float
) -> None:
    x, y = symlog(a, linear), symlog(b, linear)
    assert (x <= y) or a > b
    assert symlog(-a, linear) == -x
