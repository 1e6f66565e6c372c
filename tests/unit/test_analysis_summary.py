"""The numbers of a pattern and of words.parquet on files small enough to count by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forkpoint.analysis import words as words_module
from forkpoint.analysis.lab_truth import lab_truth
from forkpoint.analysis.summary import SummarySettings, summarise
from forkpoint.analysis.words import find_words, read_words, write_words
from forkpoint.config import RunConfig, parse_config
from forkpoint.errors import RunError
from forkpoint.evaluation.statistics import bootstrap_interval, wilson_interval
from forkpoint.lab import GameWorld, truth_of
from forkpoint.runs.completions import part_files
from forkpoint.runs.results import EntropyBin, Estimate, Pattern
from forkpoint.runs.resume import leaves
from tests.stored import flat, make_completion, make_store, random_store


def described(source: str = "sampled", **config: Any) -> dict[str, Any]:
    resolved = parse_config(config) if config else RunConfig()
    return {"source": source, "config": resolved.model_dump(mode="json")}


GYM: dict[str, Any] = {"task": {"type": "gym", "name": "chain_sum"}}


def words_of(paths: list[Path]) -> Path:
    return paths[0].parent / "words.parquet"


def pattern_of(paths: list[Path]) -> Pattern:
    return summarise(paths, words_of(paths), described(**GYM), SummarySettings(min_count=0))


def completion(number: int, sample: int, entropies: list[float], **fields: Any) -> Any:
    texts = fields.pop("texts", [" x"] * len(entropies))
    return make_completion(number, sample, texts=texts, entropies=entropies, **fields)


def test_headline_numbers_by_hand(tmp_path: Path) -> None:
    store = make_store(
        tmp_path,
        [completion(0, 0, [0.0, 0.005, 1.0]), completion(0, 1, [0.5, 0.0], reward=0.0)],
        [completion(1, 0, [2.0, 0.0, 0.0, 0.0, 0.0], reward=None)],
    )
    pattern = pattern_of(store)
    expected = {
        "model": "lab:game",
        "source": "sampled",
        "task": "chain_sum",
        "temperature": 1.0,
        "tokens": 10,
        "completions": 3,
        "prompts": 2,
        "keep_fraction": 0.2,
        "mean_entropy": pytest.approx(3.505 / 10),
        "share_below_0_01": 0.7,  # 6 zeros and 0.005
        "entropy_threshold": 1.0,  # k = 2: 2.0 and 1.0
        "kept_fraction": 0.2,
        "entropy_share_of_top": pytest.approx(3.0 / 3.505),
    }
    assert {name: getattr(pattern, name) for name in expected} == expected
    assert pattern.percentiles[90] == 1.0
    assert list(pattern.percentiles) == list(range(0, 101, 5))
    assert len(read_words(words_of(store))) == pattern.words_listed == 1


def test_by_position_and_length_by_hand(tmp_path: Path) -> None:
    store = make_store(
        tmp_path,
        [completion(0, 0, [1.0, 3.0, 5.0]), completion(0, 1, [2.0])],
        [completion(1, 0, [4.0, 1.0, 0.0])],
    )
    pattern = pattern_of(store)
    assert pattern.by_position == (
        EntropyBin(first=0, last=0, count=3, mean_entropy=7 / 3),
        EntropyBin(first=1, last=1, count=2, mean_entropy=2.0),
        EntropyBin(first=2, last=2, count=2, mean_entropy=2.5),
    )
    # a length of 1: one completion, 2 nats; a length of 3: 9 + 5 nats over 6 tokens
    assert pattern.by_length == (
        EntropyBin(first=1, last=1, count=1, mean_entropy=2.0),
        EntropyBin(first=3, last=3, count=2, mean_entropy=14 / 6),
    )


def test_long_completions_are_put_into_buckets(tmp_path: Path) -> None:
    # 100 positions in at most 40 buckets: 3 wide, the last one holds position 99 alone
    entropies = [float(i % 7) for i in range(100)]
    store = make_store(tmp_path, [completion(0, 0, entropies), completion(0, 1, entropies[:10])])
    buckets = pattern_of(store).by_position
    assert [(b.first, b.last) for b in (buckets[0], buckets[1], buckets[-1])] == [
        (0, 2),
        (3, 5),
        (99, 99),
    ]
    assert sum(b.count for b in buckets) == 110
    # positions 9, 10, 11: 2, 3, 4 nats of the long one and 2 of the short one's last
    assert buckets[3] == EntropyBin(first=9, last=11, count=4, mean_entropy=(2 + 3 + 4 + 2) / 4)


def test_correct_and_wrong_completions(tmp_path: Path) -> None:
    rewards = [1.0, 0.0, None, 2.0, -1.0, 0.99]
    rows = [
        completion(i // 2, i % 2, [float(i), float(i) + 1], reward=r) for i, r in enumerate(rewards)
    ]
    pattern = pattern_of(make_store(tmp_path, rows[:3], rows[3:]))
    correct, wrong = pattern.by_correctness
    # correct: samples 0 (0, 1) and 3 (3, 4); wrong: 1 (1, 2), 4 (4, 5) and 5 (5, 6)
    assert (correct.label, correct.completions, correct.tokens) == ("correct", 2, 4)
    assert (wrong.label, wrong.completions, wrong.tokens) == ("wrong", 3, 6)
    assert correct.mean_entropy.value == pytest.approx(8 / 4)
    assert wrong.mean_entropy.value == pytest.approx(23 / 6)
    for mean in (correct.mean_entropy, wrong.mean_entropy):
        assert mean.interval is not None
        assert mean.interval[0] <= mean.value <= mean.interval[1]
    # right: 1 of 2, 1 of 2 (the one without a mark counts as wrong, as in eval), 0 of 2
    low, high = bootstrap_interval([0.5, 0.5, 0.0], seed=RunConfig().evaluation.seed)
    assert pattern.accuracy == Estimate(value=1 / 3, low=low, high=high, n=3)


def test_intervals_resample_prompts(tmp_path: Path) -> None:
    # equal tokens within a prompt, unequal between: 2 prompts tell far less than 40 tokens would
    rows = [completion(p, s, [float(p)] * 20) for p in (0, 1) for s in (0, 1)]
    (correct,) = pattern_of(make_store(tmp_path, rows)).by_correctness
    assert correct.mean_entropy == Estimate(value=0.5, low=0.0, high=1.0, n=2)


def test_one_prompt_has_no_interval_and_one_sample_has_wilsons(tmp_path: Path) -> None:
    pattern = pattern_of(make_store(tmp_path / "a", [completion(0, 0, [1.0])]))
    assert pattern.by_correctness[0].mean_entropy.interval is None
    rows = [completion(p, 0, [1.0], reward=float(p < 2)) for p in range(5)]
    low, high = wilson_interval(2, 5)
    pattern = pattern_of(make_store(tmp_path / "b", rows))
    assert pattern.accuracy == Estimate(value=0.4, low=low, high=high, n=5)


def test_without_rewards_nothing_is_right_or_wrong(tmp_path: Path) -> None:
    rows = [completion(p, 0, [1.0], reward=None) for p in range(3)]
    pattern = pattern_of(make_store(tmp_path, rows))
    assert pattern.accuracy is None
    assert pattern.by_correctness == ()


def test_a_completion_without_tokens_counts_as_one(tmp_path: Path) -> None:
    store = make_store(tmp_path, [completion(0, 0, []), completion(0, 1, [1.0, 2.0])])
    pattern = pattern_of(store)
    assert (pattern.completions, pattern.tokens) == (2, 2)
    assert pattern.by_length == (EntropyBin(first=2, last=2, count=1, mean_entropy=1.5),)


def test_the_sum_over_parts_does_not_depend_on_the_cut(tmp_path: Path) -> None:
    rows = [
        completion(p, s, [0.1 * p + 0.3 * s + 0.01 * t for t in range(p + 2)], reward=float(s))
        for p in range(6)
        for s in range(2)
    ]
    whole = pattern_of(make_store(tmp_path / "a", rows))
    parts = pattern_of(make_store(tmp_path / "b", rows[:5], rows[5:6], rows[6:]))
    a, b = (dict(leaves(one.model_dump())) for one in (whole, parts))
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value == (pytest.approx(b[name]) if isinstance(value, float) else b[name]), name


def test_other_peoples_completions_are_of_no_task(tmp_path: Path) -> None:
    store = make_store(tmp_path, [completion(0, 0, [1.0])])
    pattern = summarise(store, words_of(store), described("a.jsonl"), SummarySettings())
    assert (pattern.source, pattern.task, pattern.lab) == ("a.jsonl", None, None)


# ---- words ---------------------------------------------------------------------------------------


def test_words_by_hand(tmp_path: Path) -> None:
    # "so" ten times with 0.0 .. 0.9, "2" twice, a part of a character three times
    so = [make_completion(0, s, texts=["so"], ids=[4], entropies=[s / 10]) for s in range(10)]
    rest = make_completion(
        1, texts=["2", "", "", "", "2"], ids=[9, 5, 5, 6, 8], entropies=[3, 9, 9, 9, 1]
    )
    words = find_words(make_store(tmp_path, so[:4], [*so[4:], rest]), 1)
    assert [(w.text, w.token_id, w.count) for w in words] == [("2", 9, 2), ("so", 4, 10)]
    assert [w.mean for w in words] == [2.0, pytest.approx(0.45)]
    # the 9th of 10 and the 2nd of 2 (ceil(1.8))
    assert [w.p90 for w in words] == [3.0, pytest.approx(0.8)]
    assert [w.text for w in find_words(part_files(tmp_path / "completions/analysis"), 2)] == ["so"]


def test_rare_words_are_left_out_strictly(tmp_path: Path) -> None:
    row = make_completion(texts=["a"] * 3 + ["b"] * 4, ids=[1] * 3 + [2] * 4)
    assert [w.text for w in find_words(make_store(tmp_path, [row]), 3)] == ["b"]


def test_words_against_sorting(tmp_path: Path) -> None:
    store = random_store(tmp_path, groups=20, size=2, length=60)
    found = {word.text: word for word in find_words(store, 5)}
    by_text: dict[str, list[float]] = {}
    for text, value in flat(store):
        by_text.setdefault(text, []).append(value)
    expected = {text: sorted(x) for text, x in by_text.items() if len(x) > 5}
    assert found.keys() == expected.keys()
    assert len(found) > 10
    for text, x in expected.items():
        assert found[text].count == len(x)
        assert found[text].mean == pytest.approx(np.mean(x))
        assert found[text].p90 == x[-(-9 * len(x) // 10) - 1]
    means = [word.mean for word in find_words(store, 5)]
    assert means == sorted(means, reverse=True)


def test_selected_shares_are_of_groups_that_were_trained_on(tmp_path: Path) -> None:
    given = [
        make_completion(0, 0, texts=["a", "b"], accepted=True, selected=[True, False]),
        make_completion(0, 1, texts=["a", "b"], accepted=True, selected=[False, False]),
        make_completion(1, 0, texts=["a", "c"], accepted=False, selected=[False, False]),
        make_completion(2, 0, texts=["a"], accepted=True, selected=[False], known=False),
    ]
    words = find_words(make_store(tmp_path, given), 0)
    # the last one has no entropy and does not count
    assert {w.text: (w.count, w.share_selected) for w in words} == {
        "a": (3, 0.5),
        "b": (2, 0.0),
        "c": (1, None),
    }


def test_words_are_read_back(tmp_path: Path) -> None:
    words = [words_module.Word(token_id=3, text=" €", count=7, mean=1.5, p90=2.0)]
    write_words(tmp_path / "words.parquet", words)
    assert read_words(tmp_path / "words.parquet") == words
    write_words(tmp_path / "none.parquet", [])
    assert read_words(tmp_path / "none.parquet") == []
    with pytest.raises(RunError, match="cannot read"):
        read_words(tmp_path / "missing.parquet")


# ---- the laboratory's truth ----------------------------------------------------------------------

GAME = (
    "pick n3 and n5 : n3 + n5 = n8 ; left n2 n8 | "  # 15 words
    "pick n8 and n2 : n8 * n2 = n16 ; check n16 = n16 yes"  # 16 words
)


def game(words: str, entropies: list[float], number: int = 0) -> Any:
    texts = [("" if i == 0 else " ") + word for i, word in enumerate(words.split())]
    return make_completion(number, texts=texts, entropies=entropies, prompt="n3 n5 n2 goal n16 :")


def test_a_true_measurement_has_no_error(tmp_path: Path) -> None:
    truth = truth_of(GameWorld(), {"numbers": (3, 5, 2), "goal": 16}, GAME.split())
    found = lab_truth(
        make_store(tmp_path, [game(GAME, list(truth.entropies))]), GameWorld(), 0.2, temperature=1.0
    )
    assert found is not None
    forks = sum(truth.forks)
    assert found.tokens == len(GAME.split()) == 31
    assert found.fork_share == pytest.approx(forks / 31)
    assert found.entropy_error == pytest.approx(0, abs=1e-7)
    assert found.average_precision == 1.0
    # both numbers and the operator of the first move; of the second the first number leaves no
    # choice of the other. k = ceil(0.2 * 31) = 7 tokens are kept
    assert forks == 3 + 2
    assert found.precision == pytest.approx(5 / 7)
    assert found.recall == 1.0
    assert found.forced_entropy_measured == 0.0
    assert found.fork_entropy_measured == pytest.approx(found.fork_entropy_true)


def test_nothing_is_true_after_an_illegal_word(tmp_path: Path) -> None:
    # "pick n3 or": the third word is illegal, so "and" was forced there and the rest has no truth
    store = make_store(tmp_path, [game("pick n3 or n5 :", [0.1, 1.0, 0.3, 9.0, 9.0])])
    found = lab_truth(store, GameWorld(), 0.2, temperature=1.0)
    assert found is not None
    first = truth_of(GameWorld(), {"numbers": (3, 5, 2), "goal": 16}, ["pick", "n3"]).entropies[1]
    assert found.tokens == 3
    assert found.entropy_error == pytest.approx((0.1 + abs(1.0 - first) + 0.3) / 3, rel=1e-6)
    assert found.forced_entropy_measured == pytest.approx(0.2)
    assert found.fork_entropy_measured == 1.0


def test_the_laboratory_is_recognised_by_its_prompts(tmp_path: Path) -> None:
    other = make_completion(1, texts=["a"])
    assert lab_truth(make_store(tmp_path / "a", [other]), GameWorld(), 0.2, temperature=1.0) is None
    mixed = make_store(tmp_path / "b", [game("pick n3", [0.0, 1.0])], [other])
    assert lab_truth(mixed, GameWorld(), 0.2, temperature=1.0) is None


def test_truth_of_another_temperature_is_not_known(tmp_path: Path) -> None:
    store = make_store(tmp_path, [game("pick n3", [0.0, 1.0])])
    hot = described(rollout={"temperature": 1.5})
    warm = summarise(store, words_of(store), hot, SummarySettings()).lab
    assert warm is not None
    assert (warm.fork_entropy_true, warm.entropy_error) == (None, None)
    assert warm.average_precision == 1.0
    plain = summarise(store, words_of(store), described(), SummarySettings())
    assert plain.lab is not None
    assert None not in (plain.lab.fork_entropy_true, plain.lab.entropy_error)
    assert plain.task == "lab:game"


def test_a_text_without_forks_has_no_precision(tmp_path: Path) -> None:
    store = make_store(tmp_path, [game("pick", [0.25])])
    lab = summarise(store, words_of(store), described(), SummarySettings()).lab
    assert lab is not None
    assert lab.fork_share == 0.0
    assert lab.average_precision is None
    assert lab.forced_entropy_measured == 0.25
