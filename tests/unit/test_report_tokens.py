"""The viewer's packed numbers are the files' numbers, and what does not fit is left out by rule."""

import base64
import json
import math
import re
import zlib
from collections.abc import Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.report.completions import MOST_CHECKPOINTS, Checkpoints, choose, shares
from forkpoint.report.data import RunData
from forkpoint.report.tokens import (
    COLOUR_EDGES,
    LEVELS,
    LOG_STEP,
    MISSING,
    Vocabulary,
    pack,
    pack_bits,
    pack_indices,
    probability_codes,
    quantise,
    viewer,
)
from forkpoint.runs import RunDirectory
from forkpoint.runs.results import write_result
from tests.report_runs import make_row, make_run
from tests.stored import make_completion, make_pattern, make_store, write_dynamics

ITEMS = {"Uint8Array": "<u1", "Uint16Array": "<u2", "Uint32Array": "<u4"}


def unpack(packed: Sequence[str]) -> np.ndarray:
    """What tokens_data.js does."""
    kind, text = packed
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), ITEMS[kind])


def restore(codes: np.ndarray, top: float) -> np.ndarray:
    """What the page reads back: float64, nan where nothing was recorded."""
    values = top * (codes.astype(np.float64) / LEVELS) ** 2
    return np.where(codes == MISSING, np.nan, values)


def nats(stream: dict[str, Any]) -> list[float]:
    return restore(unpack(stream["codes"]), stream["top"]).tolist()


def read(root: Path, tokens: int = 500_000) -> dict[str, Any]:
    """The payload of a run directory's viewer."""
    return json.loads(viewer(run_data(root), tokens)["payload"])


def run_data(root: Path) -> RunData:
    return RunData(label="run", root=root, config=None, environment={}, metrics=[], trained=False)


def texts(page: dict[str, Any], packed: Sequence[str]) -> list[str]:
    return [page["words"][place] for place in unpack(packed)]


# ---- packed numbers -----------------------------------------------------------------------------


def test_codes_by_hand() -> None:
    # sqrt(1 / 4) = 1/2: q = 4095.5, rounded to the even 4096; sqrt(0.04 / 4) = 0.1: q = 819.1
    codes, top = quantise(np.array([0.0, 1.0, 4.0, 0.04, math.nan, -1e-9, math.inf]))
    assert (codes.tolist(), top) == ([0, 4096, LEVELS, 819, MISSING, 0, MISSING], 4.0)
    back = restore(codes, top)
    assert back[1] == pytest.approx(4 * (4096 / 8191) ** 2)
    assert np.isnan(back[[4, 6]]).all()
    assert quantise(np.zeros(0))[1] == quantise(np.zeros(3))[1] == 1.0


@given(st.lists(st.floats(0, 11.94), min_size=1))
def test_entropies_are_known_to_two_thousandths_of_a_nat(values: list[float]) -> None:
    """11.94 = ln 152 000 is the most that a vocabulary of today allows."""
    codes, top = quantise(np.array(values))
    errors = np.abs(restore(codes, top) - values)
    # dx = 2 sqrt(x top) dq / 8191 with dq <= 1/2; the square of dq adds top / (4 8191^2).
    assert (
        errors <= np.sqrt(np.array(values) * top) / LEVELS + top / (2 * LEVELS) ** 2 + 1e-9
    ).all()
    assert errors.max() < 0.0015


@given(st.lists(st.floats(math.log(0.0062), 0), min_size=1))
def test_probabilities_are_known_to_one_percent(logprobs: list[float]) -> None:
    back = np.exp(-LOG_STEP * probability_codes(np.array(logprobs)).astype(float))
    assert np.abs(back / np.exp(logprobs) - 1).max() <= math.exp(LOG_STEP / 2) - 1 + 1e-9


@given(st.lists(st.integers(0, 2**16)))
def test_packed_indices_come_back(values: list[int]) -> None:
    for size, kind in ((2**16, "Uint16Array"), (2**16 + 1, "Uint32Array")):
        kept = [v for v in values if v < size]
        packed = pack_indices(np.array(kept, np.int64), size)
        assert packed[0] == kind
        assert unpack(packed).tolist() == kept


@given(st.lists(st.booleans()))
def test_packed_bits_come_back(values: list[bool]) -> None:
    bits = unpack(pack_bits(np.array(values, bool)))
    # tokens_data.js: (marks[t >> 3] >> (t & 7)) & 1
    assert [bool(bits[t >> 3] >> (t & 7) & 1) for t in range(len(values))] == values


def test_packed_arrays_are_little_endian_whatever_the_machine() -> None:
    big = np.array([1, 256], ">u2")
    assert pack(big) == pack(big.astype("<u2"))
    assert zlib.decompress(base64.b64decode(pack(big)[1])) == b"\x01\x00\x00\x01"


# ---- which groups -------------------------------------------------------------------------------


def test_shares_by_hand() -> None:
    assert shares([10, 20, 30], 100) == [10, 20, 30]
    assert shares([100, 5, 100], 65) == [30, 5, 30]  # 5 leaves 60 to two
    assert shares([7, 7], 0) == [0, 0]
    assert shares([], 9) == []


@given(st.lists(st.integers(0, 1000)), st.integers(0, 5000))
def test_shares_never_pass_what_there_is(wanted: list[int], available: int) -> None:
    given_out = shares(wanted, available)
    assert all(0 <= g <= w for g, w in zip(given_out, wanted, strict=True))
    assert sum(given_out) <= available
    assert sum(wanted) > available or given_out == wanted


@given(st.lists(st.integers(1, 100), min_size=1), st.integers(0, 3000))
def test_whole_groups_are_drawn_until_the_page_is_full(sizes: list[int], available: int) -> None:
    sizes_P = np.array(sizes)
    taken = choose(sizes_P, available).tolist()
    assert taken == sorted(set(taken)) == choose(sizes_P, available).tolist()
    if sum(sizes) <= available:
        assert taken == list(range(len(sizes)))
    else:
        assert sizes_P[taken].sum() <= available or len(taken) == 1


def test_a_sample_is_not_the_beginning_of_the_file() -> None:
    taken = choose(np.full(1000, 10), 1000)
    assert len(taken) == 100
    # The mean of 100 of 0 ... 999 without replacement: 499.5 +- 27 (one standard deviation).
    assert abs(taken.mean() - 499.5) < 3 * 27


# ---- words --------------------------------------------------------------------------------------


def test_the_vocabulary_keeps_texts_of_one_id_apart() -> None:
    vocabulary = Vocabulary()
    assert [vocabulary.place("", 7), vocabulary.place("é", 7), vocabulary.place("é", 7)] == [
        0,
        1,
        1,
    ]
    assert vocabulary.place_of_id(7) == 1  # the place that has a text
    assert vocabulary.place_of_id(9) == vocabulary.place_of_id(9) == 2
    assert list(vocabulary.entries) == [("·", 7), ("é", 7), ("", 9)]


# ---- recorded steps -----------------------------------------------------------------------------


def test_tokens_of_a_step_stand_in_the_payload(tmp_path: Path) -> None:
    rows = {
        1: [
            make_row(3, 1, tokens=["go"], ids=[5], entropies=[0.5], logprobs=[-1.0], reward=0.0),
            make_row(
                3,
                0,
                tokens=["go", " left", "<eos>"],
                ids=[5, 6, 1],
                text="go left",
                entropies=[0.125, 1.5, 0.0],
                logprobs=[-0.5, -2.0, 0.0],
                selected=[False, True, False],
                advantage=-1.25,
                prompt="where?",
                error="timeout",
                finish_reason="length",
            ),
        ]
    }
    page = read(make_run(tmp_path / "run", rows=rows))
    (source,) = page["sources"]
    assert (source["key"], source["markName"], source["alternatives"]) == (
        "step-1",
        "selected",
        None,
    )
    (group,) = source["groups"]
    assert (group["number"], group["id"], group["accepted"], group["sampled"]) == (3, "p3", True, 2)
    assert group["prompt"] == "say a b"  # of the first row in the file
    # sample, shown, length, right, truncated, reward, advantage, error
    assert group["completions"] == [
        [0, 3, 3, True, 1, 1, -1.25, "timeout"],
        [1, 1, 1, False, 0, 0, 0.5, None],
    ]
    assert texts(page, source["words"]) == ["go", " left", "<eos>", "go"]
    assert [page["ids"][place] for place in unpack(source["words"])] == [5, 6, 1, 5]
    assert nats(source["entropy"]) == pytest.approx([0.125, 1.5, 0.0, 0.5], abs=1e-4)
    # The largest is 2: sqrt(0.5 * 2) / 8191 = 0.00012 nats.
    assert nats(source["surprisal"]) == pytest.approx([0.5, 2.0, 0.0, 1.0], abs=1.3e-4)
    assert unpack(source["marked"]).tolist() == [0b0010]


def test_the_last_and_the_first_step_are_shown_mixed_groups_first(tmp_path: Path) -> None:
    def rows(step: int) -> list[Any]:
        rewards = {0: (0.0, 0.0), 1: (0.0, 1.0), 2: (1.0, 1.0), 3: (1.0, None)}
        return [
            make_row(serial, sample, step=step, reward=reward)
            for serial, pair in rewards.items()
            for sample, reward in enumerate(pair)
        ]

    page = read(make_run(tmp_path / "run", rows={step: rows(step) for step in (1, 4, 9)}))
    assert [source["key"] for source in page["sources"]] == ["step-9", "step-1"]
    for source in page["sources"]:
        assert [group["number"] for group in source["groups"]] == [1, 3, 0, 2]


def test_completions_without_entropies_are_shown(tmp_path: Path) -> None:
    rows = {1: [make_row(entropies=None), make_row(0, 1, entropies=[0.5, 0.25])]}
    (source,) = read(make_run(tmp_path / "run", rows=rows))["sources"]
    codes = unpack(source["entropy"]["codes"])
    assert codes.tolist()[:2] == [MISSING, MISSING]
    assert MISSING not in codes[2:]


# ---- the analysis -------------------------------------------------------------------------------


def test_tokens_of_the_store_stand_in_the_payload(tmp_path: Path) -> None:
    """Two parts; the second one's prompt has an answer in the first."""
    likely = [[(5, 0.5), (7, 0.3), (9, 0.004)], [(8, 0.6), (5, 0.25), (6, 0.1)]]
    first = make_completion(
        0,
        0,
        texts=["go", " left"],
        ids=[5, 6],
        entropies=[0.9, 0.1],
        logprobs=[-0.7, -2.3],
        top=likely,
    )
    second = make_completion(1, 0, texts=["", "é"], ids=[7, 4], entropies=[0.2, 0.3], reward=0.0)
    third = make_completion(0, 1, texts=["x"], ids=[3], entropies=[1.5], finish_reason="length")
    root = tmp_path / "run"
    make_store(root, [first, second], [third])
    page = read(root)
    (source,) = page["sources"]
    assert [group["id"] for group in source["groups"]] == ["p0", "p1"]
    assert [one[:5] for group in source["groups"] for one in group["completions"]] == [
        [0, 2, 2, True, 0],
        [1, 1, 1, True, 1],
        [0, 2, 2, False, 0],
    ]
    assert texts(page, source["words"]) == ["go", " left", "x", "·", "é"]
    assert nats(source["entropy"]) == pytest.approx([0.9, 0.1, 1.5, 0.2, 0.3], abs=2e-4)
    # Without the chosen tokens 5, 6, 3, 7, 4 and without 9, which is less likely than 0.6 %.
    others = source["alternatives"]
    assert unpack(others["counts"]).tolist() == [1, 2, 0, 0, 0]
    assert [page["ids"][place] for place in unpack(others["words"])] == [7, 8, 5]
    # -ln 0.3 / 0.02 = 60.2, -ln 0.6 / 0.02 = 25.5, -ln 0.25 / 0.02 = 69.3
    assert unpack(others["codes"]).tolist() == [60, 26, 69]
    # Token 5 was seen as "go"; 7 only as a piece of a character, 8 never: no text.
    assert texts(page, others["words"]) == ["", "", "go"]
    # With the tokenizer's vocabulary those not seen have its text; 5 stays as it was seen.
    texts_of = pa.table({"token_id": range(9), "text": [f" v{i}" for i in range(9)]})
    pq.write_table(texts_of, RunDirectory(root).vocabulary_parquet)
    page = read(root)
    likely = texts(page, page["sources"][0]["alternatives"]["words"])
    assert likely == [" v7", " v8", "go"]


def entropies_marked(root: Path) -> tuple[str, list[int]]:
    (source,) = read(root)["sources"]
    bits = unpack(source["marked"])
    return source["markName"], [t for t in range(5) if bits[0] >> t & 1]


def test_forks_are_marked_by_the_threshold_of_the_analysis(tmp_path: Path) -> None:
    root = tmp_path / "run"
    values = [0.1, 0.7, 0.2, 0.4, 0.3]
    make_store(root, [make_completion(texts="abcde", entropies=values)])
    # Rank 0.8 * 4 = 3.2 of .1 .2 .3 .4 .7: 0.46
    assert entropies_marked(root) == ("top fifth", [1])
    # The threshold is one of the entropies, in float32.
    write_result(root, make_pattern(entropy_threshold=float(np.float32(0.3))))
    assert entropies_marked(root) == ("above threshold", [1, 3, 4])


def test_checkpoints_stand_beside_the_tokens_they_scored(tmp_path: Path) -> None:
    root = tmp_path / "run"
    answers = [make_completion(0, 0), make_completion(0, 1), make_completion(1, 0)]
    make_store(root, answers)
    write_dynamics(root, answers[:1], [[[0.5, 1.0]], [[0.25, 2.0]]])
    (source,) = read(root)["sources"]
    assert source["checkpoints"] == ["step_0", "step_1"]
    base, last = map(nats, source["scored"])
    assert base[:2] == pytest.approx([0.5, 1.0], abs=1e-4)
    assert last[:2] == pytest.approx([0.25, 2.0], abs=1e-4)
    # p0/1 and p1/0 were not scored.
    assert np.isnan(base[2:] + last[2:]).all()


def test_completions_of_the_dynamics_are_not_taken_for_those_of_the_analysis(
    tmp_path: Path,
) -> None:
    """The same prompt and sample, the same length, other tokens: a source of its own."""
    root = tmp_path / "run"
    make_store(root, [make_completion(texts=["x", " y"], ids=[0, 1], entropies=[0.1, 0.2])])
    row = make_completion(texts=["go", "", "é", "."], ids=[2, 3, 4, 5], reward=0.0)
    write_dynamics(root, [row], [[[1.0, 2.0, 0.5, 0.0]], [[0.5, 0.25, 0.0, 0.0]]])
    page = read(root)
    analysis, dynamics = page["sources"]
    assert (analysis["key"], analysis["checkpoints"]) == ("analysis", [])
    assert (dynamics["key"], dynamics["checkpoints"]) == ("dynamics", ["step_0", "step_1"])
    assert texts(page, dynamics["words"]) == ["go", "·", "é", "."]
    assert dynamics["groups"][0]["completions"][0][:5] == [0, 4, 4, False, 0]
    # Entropy and surprisal are those of the last checkpoint, which sampled.
    assert nats(dynamics["entropy"]) == pytest.approx([0.5, 0.25, 0, 0], abs=1e-4)
    assert nats(dynamics["surprisal"]) == pytest.approx([0.5, 0.25, 0, 0], abs=1e-4)
    assert nats(dynamics["scored"][0]) == pytest.approx([1.0, 2.0, 0.5, 0], abs=2e-4)
    # Rank 0.8 * 3 = 2.4 of 0 0 0.25 0.5: 0.25 + 0.4 * 0.25
    assert unpack(dynamics["marked"]).tolist() == [0b0001]


def test_a_few_of_many_checkpoints_are_on_the_page() -> None:
    def shown(count: int) -> list[int]:
        names = [str(i) for i in range(count)]
        return Checkpoints([], names).on_the_page

    assert shown(1) == [0]
    assert shown(MOST_CHECKPOINTS) == [0, 1, 2, 3, 4, 5]
    assert shown(11) == [0, 2, 4, 6, 8, 10]


# ---- what does not fit --------------------------------------------------------------------------


def test_a_group_that_does_not_fit_is_cut(tmp_path: Path) -> None:
    letters = [chr(ord("a") + i) for i in range(8)]
    root = tmp_path / "run"
    make_store(root, [make_completion(0, sample, texts=letters) for sample in range(3)])
    # 10 tokens' worth: 10 * 17 // 16 = 10 of the group's 24, in the order they were sampled.
    (source,) = read(root, tokens=10)["sources"]
    (group,) = source["groups"]
    assert [(one[0], one[1], one[2]) for one in group["completions"]] == [(0, 8, 8), (1, 2, 8)]
    assert group["sampled"] == 3
    assert len(unpack(source["words"])) == 10


def test_a_page_says_how_many_of_how_many_it_shows(tmp_path: Path) -> None:
    rows = [make_row(p, s, tokens=["t"] * 50, entropies=None) for p in range(40) for s in (0, 1)]
    root = make_run(tmp_path / "run", rows={1: rows})
    make_store(root, [make_completion(p, 0, texts=["t"] * 50) for p in range(40)])
    step, analysis = viewer(run_data(root), tokens=2000)["sources"]
    assert (step["completions"], step["tokens"]) == (80, 4000)
    assert (analysis["completions"], analysis["tokens"]) == (40, 2000)
    # Half of 2000 * 17 = 34 000 bytes each. A group of the step adds 100 * 8 + 2 * 80 + 7, of
    # the analysis 50 * 16 + 80 + 7: 17 groups of two answers, 19 of one.
    assert (step["shown_completions"], step["shown_tokens"]) == (34, 1700)
    assert (analysis["shown_completions"], analysis["shown_tokens"]) == (19, 950)


def test_nothing_recorded_and_nothing_sampled(tmp_path: Path) -> None:
    assert read(make_run(tmp_path / "run"))["sources"] == []
    root = tmp_path / "analysed"
    make_store(root, [make_completion(texts=[], top=[])])
    (source,) = read(root)["sources"]
    assert source["groups"][0]["completions"][0][1:3] == [0, 0]
    assert len(unpack(source["words"])) == 0


@pytest.mark.parametrize("seed", range(4))
def test_every_token_keeps_its_own_numbers(tmp_path: Path, seed: int) -> None:
    """Answers of any length, prompts over several parts: the streams stay aligned."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 6, 30).tolist()
    made = []
    for n, length in enumerate(lengths):
        # Token t of answer n: id 100 n + t, entropy n / 16 + t / 128, the next id as alternative.
        ids = [100 * n + t for t in range(length)]
        entropies = [n / 16 + t / 128 for t in range(length)]
        likely = [[(i, 0.6), (i + 1, 0.4 if i % 2 else 0.001)] for i in ids]
        answer = make_completion(
            n % 7, n, texts=[f"w{i}" for i in ids], ids=ids, entropies=entropies, top=likely
        )
        made.append(answer)
    cuts = sorted(random.integers(0, 30, 3).tolist())
    root = tmp_path / "run"
    make_store(root, *(made[a:b] for a, b in pairwise([0, *cuts, 30])))
    page = read(root)
    (source,) = page["sources"]
    shown = [one for group in source["groups"] for one in group["completions"]]
    assert sorted(one[0] for one in shown) == list(range(30))
    expected = [(n, t) for n, length, *_ in shown for t in range(length)]
    ids = [page["ids"][place] for place in unpack(source["words"])]
    assert ids == [100 * n + t for n, t in expected]
    assert nats(source["entropy"]) == pytest.approx(
        [n / 16 + t / 128 for n, t in expected], abs=1e-3
    )
    others = source["alternatives"]
    assert unpack(others["counts"]).tolist() == [i % 2 for i in ids]
    assert [page["ids"][place] for place in unpack(others["words"])] == [
        i + 1 for i in ids if i % 2
    ]


# ---- colours ------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """WCAG 2 relative luminance of ``#rrggbb`` or ``#rgb``."""
    digits = colour.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * c for c in digits)
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def colours(scheme: int) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("report.css", "tokens.css"):
        text = (files("forkpoint.report") / "templates" / name).read_text(encoding="utf-8")
        part = text.split("prefers-color-scheme: dark")[scheme]
        found |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", part))
    return found


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_token_colours_are_ordered_by_lightness_and_readable(scheme: int) -> None:
    """Lightness alone orders the classes, so that no colour vision is needed."""
    c = colours(scheme)
    ramp = [c["paper"], *(c[f"h{i}"] for i in range(1, len(COLOUR_EDGES) + 1))]
    lightness = [luminance(one) for one in ramp]
    assert lightness == sorted(lightness, reverse=scheme == 0)
    inks = [c["ink"]] + [c["on-low"]] * 4 + ["#161614"] * 2 + [c["on-high"]] * 2
    assert min(contrast(a, b) for a, b in zip(ramp, inks, strict=True)) >= 4.5
    for name in ("ink", "soft", "s0", "s1", "s2", "s3", "s4", "s5"):
        assert contrast(c[name], c["paper"]) >= 4.5


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_both_sides_of_zero_differ_in_hue_and_match_in_lightness(scheme: int) -> None:
    """Blue against orange: the one pair of hues that all common colour blindnesses keep apart."""
    c = colours(scheme)
    below = [c[f"b{i}"] for i in range(1, 5)]
    above = [c[f"h{i}"] for i in (2, 4, 6, 8)]  # p1 to p4 in tokens.css
    for side in (below, above):
        lightness = [luminance(one) for one in (c["paper"], *side)]
        assert lightness == sorted(lightness, reverse=scheme == 0)
    inks = [c["on-low"]] * 2 + ["#161614", c["on-high"]]
    assert min(contrast(a, b) for a, b in zip(below + above, inks * 2, strict=True)) >= 4.5
    for blue, orange in zip(below, above, strict=True):
        assert int(blue[5:7], 16) > int(blue[1:3], 16)  # more blue than red
        assert int(orange[1:3], 16) > int(orange[5:7], 16)
