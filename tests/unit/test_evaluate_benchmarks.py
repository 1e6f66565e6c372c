"""From given answers to a benchmark's numbers, each by hand; stopped, resumed, compared.

The problems are made up and the answers scripted. One test has verifiers in processes of their own.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from forkpoint.config import RunConfig, parse_config
from forkpoint.config.evaluation import BenchmarkConfig
from forkpoint.errors import ConfigError, DataError, Interrupted, RunError
from forkpoint.evaluation import benchmarks as module
from forkpoint.evaluation.benchmarks import evaluate_benchmarks
from forkpoint.evaluation.compare import compare
from forkpoint.evaluation.evaluate import same_answers
from forkpoint.evaluation.statistics import bootstrap_interval, paired_difference
from forkpoint.policy.load import LoadedModel
from forkpoint.rewards.build import SILENT, SameAnswers, build_scorer
from forkpoint.rewards.pool import Call
from forkpoint.rewards.worker import Part, Sample, evaluate
from forkpoint.runs.completions import part_files, read_completions
from forkpoint.runs.evaluation import Benchmarks
from forkpoint.runs.results import find_result, result_path, write_result
from forkpoint.sampling.base import SampleRequest, SamplingSettings
from forkpoint.sampling.scripted import ScriptedEngine
from forkpoint.tasks.benchmarks import open_benchmark
from forkpoint.types import Completion, FinishReason, Group, Problem, Prompt, Rollout
from forkpoint.verifiers import IntegerVerifier, MathVerifier
from tests.conftest import EOS, NumberTokenizer, tiny_model


class Tokenizer(NumberTokenizer):
    """Reads any text, as three tokens."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [5, 6, 7]}


def completion(text: str, *, cut: bool = False) -> Completion:
    tokens = 8 if cut else 4
    return Completion(
        token_ids=[9] * tokens,
        logprobs=[-0.5] * tokens,
        entropies=[0.25] * tokens,
        finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP,
        text=text,
    )


def box(answer: str) -> Completion:
    return completion(f"It is \\boxed{{{answer}}}.")


CUT = completion("It may be", cut=True)

AIME = {  # golds 7, 25, 3
    "aime24/1": (box("7"), box("007"), box("5"), box("5")),
    "aime24/2": (box("24"), box("24"), box("25"), CUT),
    "aime24/3": (box("1"), box("x"), CUT, CUT),
}
MATH = {  # golds 1/2, x + 1
    "math500/1": (box("0.5"), box("\\frac12"), box("2/4"), box("2")),
    "math500/2": (box("2x+2"), box("2(x+1)"), box("x+1"), box("1+x")),
}


class Recording(ScriptedEngine):
    """Notes how it was asked."""

    def __init__(self, answers: dict[str, tuple[Completion, ...]]) -> None:
        super().__init__({(p, i): c for p, many in answers.items() for i, c in enumerate(many)})
        self.calls: list[tuple[list[str], SamplingSettings]] = []

    def sample(
        self,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        self.calls.append(([r.prompt.problem.id for r in requests], settings))
        return super().sample(requests, settings, should_stop)


class PoolHere:
    """Calls rewards in this process: starting workers takes seconds."""

    def __init__(self, **settings: Any) -> None: ...

    def results(
        self, calls: Iterable[Call], samples: Sequence[Sample], should_stop: Callable[[], bool]
    ) -> Iterator[tuple[Call, list[Part]]]:
        for call in calls:
            if should_stop():
                raise Interrupted("stopped while scoring")
            yield call, evaluate(call.function.call, [samples[i] for i in call.samples])

    def close(self) -> None: ...


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkpoint.rewards.scorer.WorkerPool", PoolHere)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recording:
    """The engine that answers, and the files of the benchmarks in ``tmp_path / "data"``."""
    made = Recording(AIME | MATH)
    loaded = LoadedModel(model=tiny_model(), tokenizer=Tokenizer(), eos_ids=(EOS,))
    monkeypatch.setattr(module, "load_model", lambda config: loaded)
    monkeypatch.setattr(module, "build_engine", lambda *args, **more: made)
    data = tmp_path / "data"
    data.mkdir()
    write(data / "aime24.jsonl", [("A?", "007"), ("B?", 25), ("C?", "3")])
    write(data / "math500.jsonl", [("D?", "\\frac{1}{2}"), ("E?", "x+1")])
    return made


def write(path: Path, rows: Sequence[tuple[str, Any]]) -> None:
    lines = (json.dumps({"problem": question, "answer": answer}) for question, answer in rows)
    path.write_text("\n".join(lines))


def config(tmp_path: Path, *names: str, seed: int = 3, model: str = "m", **more: Any) -> RunConfig:
    settings = {"max_new_tokens": 8, "samples": 4, **more}
    return parse_config(
        {
            "model": {"path": model},
            "scoring": {"workers": 1},
            "rollout": {"batch_sequences": 8, "max_new_tokens": 50},
            "overlong": {"buffer": 40},  # of training: answers of 8 tokens have none
            "evaluation": {
                "seed": seed,
                "benchmark_dir": str(tmp_path / "data"),
                "benchmarks": [{"name": name, **settings} for name in names],
            },
        }
    )


def test_the_numbers_of_two_benchmarks_by_hand(engine: Recording, tmp_path: Path) -> None:
    notes: list[str] = []
    root = tmp_path / "run"
    found = evaluate_benchmarks(config(tmp_path, "aime24", "math500"), root, note=notes.append)
    aime, math = found.benchmarks
    assert (found.model, found.seed) == ("m", 3)
    assert (aime.name, aime.verifier, aime.chat, aime.temperature) == (
        "aime24",
        "integer",
        False,
        1,
    )
    assert aime.source == str(tmp_path / "data" / "aime24.jsonl")
    assert "{question}" in aime.prompt

    rights = [problem.right for problem in aime.problems]
    assert rights == [(True, True, False, False), (False, False, True, False), (False,) * 4]
    answers = [problem.answers for problem in aime.problems]
    assert answers == [(0, 0, 1, 1), (1, 1, 0, None), (1, 2, None, None)]
    # shares 1/2, 1/4, 0
    low, high = bootstrap_interval([0.5, 0.25, 0.0], seed=3)
    assert (aime.accuracy.value, aime.accuracy.n) == (pytest.approx(0.25), 3)
    assert (aime.accuracy.low, aime.accuracy.high) == (low, high)
    # sqrt((1/4 + 3/16) / 3) / 3
    assert aime.sampling_error == pytest.approx((7 / 48) ** 0.5 / 3)
    # two of four right: 1 - 1/6; one: 1 - 3/6; none
    assert aime.pass_at[2].value == pytest.approx((5 / 6 + 1 / 2) / 3)
    assert {k: e.value for k, e in aime.pass_at.items() if k != 2} == pytest.approx(
        {1: 0.25, 4: 2 / 3}
    )
    # of all four: a tie of 7 and 5 is a half; 24 beats 25; nothing right
    assert aime.majority_at[4].value == pytest.approx(0.5 / 3)
    # of two: {7,7,5,5} 1/6 sure, 4/6 a half: 1/2; {24,24,25,-}: 25,24 twice a half, 25,- once: 2/6
    assert aime.majority_at[2].value == pytest.approx((1 / 2 + 1 / 3) / 3)
    assert aime.majority_at[1].value == pytest.approx(aime.accuracy.value)
    assert (aime.length_mean, aime.truncated_fraction) == ((9 * 4 + 3 * 8) / 12, 3 / 12)
    assert (aime.samples, aime.max_new_tokens, aime.unjudged) == (4, 8, 0)

    # mathematics: 0.5, 1/2 and 2/4 are one answer; of the wrong ones 2x+2 and 2(x+1) are one
    assert [problem.right for problem in math.problems] == [
        (True, True, True, False),
        (False, False, True, True),
    ]
    assert [problem.answers for problem in math.problems] == [(0, 0, 0, 1), (1, 1, 0, 0)]
    assert math.majority_at[4].value == pytest.approx((1 + 0.5) / 2)
    assert notes[0].startswith("aime24 has 30 problems, and ")
    assert notes[1].startswith("aime24: 25.0 % [")

    # how it was asked: at most 8 side by side, each benchmark by streams of its own
    assert [len(ids) for ids, _ in engine.calls] == [8, 4, 8]
    settings = [settings for _, settings in engine.calls]
    assert {s.max_new_tokens for s in settings} == {8}
    assert [s.purpose for s in settings] == 2 * ["benchmark aime24"] + ["benchmark math500"]

    assert find_result(root, Benchmarks) == found
    rows = list(read_completions(part_files(root / "completions" / "benchmarks" / "aime24")))
    assert [row.score.verdict for row in rows[:4]] == [1.0, 1.0, 0.0, 0.0]
    assert all(row.score.reward == row.score.verdict for row in rows)  # nothing but the verdict
    assert rows[0].prompt_id == "aime24/1"


def test_it_goes_on_where_it_stopped(engine: Recording, quick: None, tmp_path: Path) -> None:
    settings, root = config(tmp_path, "aime24"), tmp_path / "run"
    first = root / "completions" / "benchmarks" / "aime24" / "part_00000.json"
    with pytest.raises(Interrupted):
        evaluate_benchmarks(settings, root, first.exists)
    assert not result_path(root, Benchmarks).exists()
    found = evaluate_benchmarks(settings, root)
    assert [ids[0] for ids, _ in engine.calls].count("aime24/1") == 1
    calls = len(engine.calls)
    assert evaluate_benchmarks(settings, root) == found
    assert len(engine.calls) == calls  # nothing was sampled again
    assert found == evaluate_benchmarks(settings, None)

    # other benchmarks of the same model join it, and those that are there stay
    both = evaluate_benchmarks(config(tmp_path, "math500"), root)
    assert [one.name for one in both.benchmarks] == ["math500"]
    stored = find_result(root, Benchmarks)
    assert stored is not None
    assert stored.benchmarks == (*found.benchmarks, *both.benchmarks)

    # other settings, problems or models do not
    with pytest.raises(RunError, match=r"other settings \(evaluation.samples: 4 -> 2\)"):
        evaluate_benchmarks(config(tmp_path, "aime24", samples=2), root)
    with pytest.raises(RunError, match=r"has benchmarks of m, seed 3: choose another --run-dir"):
        evaluate_benchmarks(config(tmp_path, "aime24", model="other"), root)
    write(tmp_path / "data" / "aime24.jsonl", [("A?", "008"), ("B?", 25), ("C?", "3")])
    with pytest.raises(RunError, match=r"other settings \(benchmark\.problems: "):
        evaluate_benchmarks(settings, root)


def test_answers_that_were_not_drawn_are_noticed(
    engine: Recording, quick: None, tmp_path: Path
) -> None:
    settings, root = config(tmp_path, "aime24"), tmp_path / "run"
    evaluate_benchmarks(settings, root)
    part = root / "completions" / "benchmarks" / "aime24" / "part_00001.json"
    stored = json.loads(part.read_text())
    stored["right_PG"][0].pop()
    part.write_text(json.dumps(stored))
    with pytest.raises(RunError, match="a problem has 3 answers where 4 were to be drawn"):
        evaluate_benchmarks(settings, root)


def test_what_this_model_cannot_be_asked_is_refused_before_sampling(
    engine: Recording, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"benchmark aime24 .* has none .* prompt = 'paper'"):
        evaluate_benchmarks(config(tmp_path, "aime24", prompt="r1"), None)
    with pytest.raises(
        ConfigError, match=r"max_new_tokens of benchmark aime24 = 128 leaves no room"
    ):
        evaluate_benchmarks(config(tmp_path, "aime24", max_new_tokens=128), None)
    with pytest.raises(DataError, match=r"together: lower max_new_tokens of benchmark aime24, or"):
        evaluate_benchmarks(config(tmp_path, "aime24", max_new_tokens=126), None)
    with pytest.raises(ConfigError, match="there is no benchmark to measure"):
        evaluate_benchmarks(config(tmp_path), None)
    # what is wrong with the second is found before the first is sampled
    long = config(tmp_path, "aime24", "math500")
    first, second = long.evaluation.benchmarks
    second = second.model_copy(update={"max_new_tokens": 126})
    evaluation = long.evaluation.model_copy(update={"benchmarks": (first, second)})
    with pytest.raises(DataError, match="max_new_tokens of benchmark math500"):
        evaluate_benchmarks(long.model_copy(update={"evaluation": evaluation}), None)
    assert engine.calls == []


# ---- which answers are the same ------------------------------------------------------------------


def same(verifier: IntegerVerifier | MathVerifier, *answers: Completion) -> list[list[int]]:
    """The places of equal answers, of those that answer."""
    problem = Problem(id="p", prompt="?", columns={"answer": "1"})
    numbers = SameAnswers(verifier).batch([(problem, answer) for answer in answers])
    groups: dict[float, list[int]] = {}
    for place, number in enumerate(numbers):
        if number != SILENT:
            groups.setdefault(number, []).append(place)
    return list(groups.values())


def test_integers_are_the_same_by_value_and_other_boxes_by_text() -> None:
    answers = (box("25"), box("025"), box("25.0"), box("x"), CUT, box("x"), box("25x"))
    assert same(IntegerVerifier("answer"), *answers) == [[0, 1, 2], [3, 5], [6]]


def test_mathematics_is_the_same_whichever_is_the_gold() -> None:
    verifier = MathVerifier("answer")
    answers = (box("\\frac{1}{3}"), box("2/6"), box("0,5"), box("0.5"), CUT, box("\\pi"))
    assert same(verifier, *answers) == [[0, 1], [2, 3], [5]]
    # math-verify holds (1, 2) for right where 1 < x < 2 is the gold, and not the other way round
    for answers in ((box("1<x<2"), box("(1,2)")), (box("(1,2)"), box("1<x<2"))):
        assert same(verifier, *answers) == [[0, 1]]
    two = completion("\\boxed{1} and \\boxed{2}")
    assert same(verifier, two, box("2, 1"), box("1")) == [[0, 1], [2]]


def test_alone_an_answer_has_the_number_of_its_text() -> None:
    call = SameAnswers(MathVerifier("answer"))
    problem = Problem(id="p", prompt="?", columns={"answer": "1"})
    assert call(problem, CUT) == SILENT
    assert call(problem, box("1/2")) == call(problem, box(" 1/2 ")) != call(problem, box("2/4"))
    batch = call.batch([(problem, box("1/2")), (problem, box("2/4"))])
    assert batch == [call(problem, box("1/2"))] * 2
    assert all(n == float(int(n)) and 0 < n < 2**53 for n in batch)  # exact in a float


@pytest.mark.slow
def test_an_answer_that_hangs_the_comparison_leaves_the_others_their_votes(tmp_path: Path) -> None:
    rewards = [{"type": "math", "timeout_s": 1.5}]
    settings = parse_config({"rewards": rewards, "scoring": {"workers": 1}})
    path = tmp_path / "mine.jsonl"
    write(path, [("A?", "7")])
    benchmark = open_benchmark(BenchmarkConfig(name="mine", path=str(path)))
    (problem,) = benchmark.problems
    scorer = build_scorer(settings, benchmark, compared=4)
    answers = (box("9^{9^{9^{9}}}"), box("7"), box("5"), box("5"))
    try:
        scores = scorer.score([(problem, answer) for answer in answers])
    finally:
        scorer.close()
    assert [score.verdict for score in scores] == [0.0, 1.0, 0.0, 0.0]
    rollouts = tuple(Rollout(completion=a, score=s) for a, s in zip(answers, scores, strict=True))
    prompt = Prompt(problem=problem, token_ids=(1,))
    group = Group(prompt=prompt, serial=0, rollouts_G=rollouts)
    assert same_answers(group) == (1, 0, 2, 2)


# ---- comparing -----------------------------------------------------------------------------------


@pytest.fixture
def pair(
    engine: Recording, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    a, b = tmp_path / "a", tmp_path / "b"
    evaluate_benchmarks(config(tmp_path, "aime24", "math500"), a)
    better = Recording(AIME | {"aime24/3": (box("3"), box("3"), box("1"), CUT)} | MATH)
    monkeypatch.setattr(module, "build_engine", lambda *args, **more: better)
    evaluate_benchmarks(config(tmp_path, "aime24", model="trained", seed=4), b)
    return a, b


def test_a_comparison_by_hand(pair: tuple[Path, Path]) -> None:
    a, b = pair
    found = compare(a, b)
    assert (found.first_model, found.second_model) == ("m", "trained")
    (one,) = found.differences  # math500 was not measured in b
    assert (one.name, one.samples) == ("aime24", 4)
    # shares 1/2, 1/4, 0 and 1/2, 1/4, 1/2: differences 0, 0, 1/2
    assert (one.first, one.second) == (pytest.approx(0.25), pytest.approx(5 / 12))
    assert one.difference.value == pytest.approx(1 / 6)
    assert one.difference == paired_difference([0.5, 0.25, 0.5], [0.5, 0.25, 0.0], seed=20_000)
    # variances of the means: (1/4 + 3/16) / 3 / 9 and (1/4 + 3/16 + 1/4) / 3 / 9
    assert one.sampling_error == pytest.approx(((7 + 11) / 16 / 27) ** 0.5)
    back = compare(b, a).differences[0]
    assert back.difference.value == pytest.approx(-1 / 6)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"temperature": 0.5}, "temperature: 1.0 and 0.5"),
        ({"max_new_tokens": 9, "verifier": "math"}, "max_new_tokens: 8 and 9; verifier: 'integer'"),
        ({"prompt": "{question}!"}, "prompt: 'User.* and '{question}!'"),
        ({"problems": "digest"}, "other problems or answers: aime24/1, aime24/2, aime24/3"),
    ],
)
def test_what_is_not_the_same_is_not_compared(
    pair: tuple[Path, Path], change: dict[str, Any], fault: str
) -> None:
    a, b = pair
    stored = find_result(b, Benchmarks)
    assert stored is not None
    (score,) = stored.benchmarks
    if "problems" in change:
        others = tuple(p.model_copy(update={"digest": "0"}) for p in score.problems)
        change = {"problems": others}
    changed = score.model_copy(update=change)
    write_result(b, stored.model_copy(update={"benchmarks": (changed,)}))
    with pytest.raises(RunError, match=f"{a} and {b} cannot be compared on aime24: {fault}"):
        compare(a, b)


def test_other_samples_and_other_numbers_of_problems_are_not_compared(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    a, _ = pair
    evaluate_benchmarks(config(tmp_path, "aime24", samples=2), tmp_path / "two")
    with pytest.raises(RunError, match="on aime24: samples: 4 and 2"):
        compare(a, tmp_path / "two")
    evaluate_benchmarks(config(tmp_path, "aime24", problems=2), tmp_path / "fewer")
    with pytest.raises(RunError, match="on aime24: 3 problems and 2"):
        compare(a, tmp_path / "fewer")
    evaluate_benchmarks(config(tmp_path, "math500", model="x"), tmp_path / "c")
    with pytest.raises(RunError, match=r"nothing to compare: .*fewer has aime24, .*c has math500"):
        compare(tmp_path / "fewer", tmp_path / "c")
    with pytest.raises(RunError, match="holds no evaluation: make one with forkpoint eval"):
        compare(tmp_path / "nowhere", a)
