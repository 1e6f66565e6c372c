"""Scoring completions: a verifier that hangs or dies costs its own sample and no other."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forkpoint.config import parse_config
from forkpoint.config.rewards import OverlongConfig
from forkpoint.errors import ConfigError, DataError
from forkpoint.rewards import Scorer, build_scorer, pool, worker
from forkpoint.rewards import build as build_module
from forkpoint.rewards.build import CustomFunction, OfColumns
from forkpoint.rewards.scorer import RewardFunction
from forkpoint.rewards.worker import Part
from forkpoint.types import Completion, FinishReason, Problem, Score
from forkpoint.verifiers import FormatVerifier, IntegerVerifier
from tests.unit import reward_functions as functions

HERE = "tests.unit.reward_functions"
PATIENT_S = 60.0
"""A time limit that no honest verifier reaches, however busy the machine."""
GRACE_S = 120.0
"""On top of the limits: what starting and ending processes may take on a busy machine."""


def answer(text: str, *, tokens: int = 1) -> Completion:
    return Completion(
        token_ids=(5,) * tokens,
        logprobs=(0.0,) * tokens,
        entropies=None,
        finish_reason=FinishReason.STOP,
        text=text,
    )


def problem(**columns: Any) -> Problem:
    return Problem(id="p", prompt="?", columns=columns)


def line_of(code: str) -> str:
    """``reward_functions.py:55: `` of the one line with this code."""
    path = Path(functions.__file__)
    numbers = [n for n, line in enumerate(path.read_text().splitlines(), 1) if code in line]
    assert len(numbers) == 1
    return f"{path.name}:{numbers[0]}: "


# ---- the scorer ----------------------------------------------------------------------------------

MakeScorer = Callable[..., Scorer]


@pytest.fixture
def make_scorer() -> Iterator[MakeScorer]:
    made: list[Scorer] = []

    def make(
        *calls: Any,
        weights: Sequence[float] = (1.0, 1.0, 1.0),
        timeout_s: float = PATIENT_S,
        overlong: OverlongConfig | None = None,
        **settings: Any,
    ) -> Scorer:
        parts = [
            RewardFunction(
                name=f"part{i}", call=call, weight=weights[i], timeout_s=timeout_s, **settings
            )
            for i, call in enumerate(calls)
        ]
        made.append(Scorer(parts, overlong or OverlongConfig(), max_new_tokens=10))
        return made[-1]

    yield make
    for scorer in made:
        scorer.close()


def score_texts(scorer: Scorer, *texts: str) -> list[Score]:
    return scorer.score([(problem(), answer(text)) for text in texts])


def test_reward_is_the_weighted_sum_of_parts(make_scorer: MakeScorer) -> None:
    scorer = make_scorer(
        functions.length_of_text,
        functions.leaves_out_b,
        weights=(0.5, 2.0),
        overlong=OverlongConfig(buffer=4, penalty=3.0),
    )
    pairs = [(problem(), answer("abc", tokens=8)), (problem(), answer("b", tokens=10))]
    first, second = scorer.score(pairs)
    # 0.5 * 3 + 2 * 1, and 2 of the last 4 tokens before the limit of 10 used: 3 * (6 - 8) / 4
    assert first.reward == pytest.approx(1.5 + 2.0 - 1.5)
    assert first.parts == {"part0": 3.0, "part1": 1.0, "overlong": -1.5}
    # one part is None: the sample is left out, without a fault
    assert second == Score(reward=None, parts={"part0": 1.0, "part1": None, "overlong": -3.0})


def test_no_pairs_no_scores(make_scorer: MakeScorer) -> None:
    assert make_scorer(functions.one).score([]) == []


def test_whatever_a_verifier_does_costs_its_own_sample_only(make_scorer: MakeScorer) -> None:
    scorer = make_scorer(functions.obeys)
    texts = {
        "give 2": "",
        "give True": "",
        "give None": "",
        "raise": f"part0: {line_of('of the verifier')}ZeroDivisionError: of the verifier",
        "unpicklable": f"part0: {line_of('raise Two')}TwoArgumentsError: 1 and 2",
        "sys.exit": f"part0: {line_of('sys.exit(0)')}SystemExit: 0",
        "interrupt": f"part0: {line_of('raise Keyboard')}KeyboardInterrupt: ",
        "give nan": "part0: ValueError: the reward nan is not finite",
        "give inf": "part0: ValueError: the reward inf is not finite",
        "give text": "part0: ValueError: could not convert string to float: 'text'",
        "give complex": "part0: TypeError: float() argument must be a string or a real number, "
        "not 'complex'",
        "exit 3": "part0: the verifier's process died with status 3",
        "exit 0": "part0: the verifier ended its process with status 0",
        "exits later": f"part0: {line_of('the reward is read')}SystemExit: 0",
        "give 5": "",
    }
    scores = score_texts(scorer, *texts)
    assert [s.error or "" for s in scores] == list(texts.values())
    assert [s.reward for s in scores] == [2.0, 1.0, None, *[None] * 11, 5.0]
    assert type(scores[1].reward) is float
    assert score_texts(scorer, "give 1")[0].reward == 1.0


def test_verifier_that_cannot_travel_to_a_worker(make_scorer: MakeScorer) -> None:
    scorer = make_scorer(lambda problem, completion: 1.0)
    (score,) = score_texts(scorer, "a")
    assert score.reward is None
    assert "part0: " in (score.error or "")
    assert "pickle" in (score.error or "")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("give 2", Part(2.0)),
        ("give None", Part(None)),
        ("raise", Part(None, f"{line_of('of the verifier')}ZeroDivisionError: of the verifier")),
        ("sys.exit", Part(None, f"{line_of('sys.exit(0)')}SystemExit: 0")),
        ("give nan", Part(None, "ValueError: the reward nan is not finite")),
        ("give 1e308", Part(None, "ValueError: the reward 1e+308 is beyond 1e+30")),
        ("over limit", Part(None, "out of time in test 3", timed_out=True)),
        ("exits later", Part(None, f"{line_of('the reward is read')}SystemExit: 0")),
        (
            "fails wordless",
            Part(None, f"{line_of('raise WordlessError')}WordlessError: an error without a text"),
        ),
        (
            "half character",  # of no use in a file
            Part(None, f"{line_of('half a character')}ValueError: \\ud83d"),
        ),
    ],
)
def test_a_part_or_why_there_is_none(text: str, part: Part) -> None:
    # what a worker does, in this process
    assert worker.run(functions.obeys, [(problem(), answer(text))]) == [part]


def test_workers_start_with_imports_and_default_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: dict[int, Any] = {}
    limited: list[float] = []
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(os, "setpgid", lambda *_: None)
    monkeypatch.setattr(worker, "_die_with", lambda parent: None)
    monkeypatch.setattr(worker, "_limit_memory", limited.append)
    monkeypatch.delitem(sys.modules, "this", raising=False)
    worker.start(os.getppid(), 4.0, ["no_such_module_of_ours", "this"])
    assert "this" in sys.modules
    assert limited == [4.0]
    assert handlers == {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_DFL}


def test_a_worker_that_is_still_starting_is_deaf_to_ctrl_c() -> None:
    worker_process = pool._Context().Process(target=os.getpid)
    worker_process.start()
    assert worker_process.pid is not None
    os.kill(worker_process.pid, signal.SIGINT)  # in the interpreter's own start
    worker_process.join(60)
    assert worker_process.exitcode == pool.ENDED_ITSELF
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_hanging_verifiers_are_killed_in_time(make_scorer: MakeScorer) -> None:
    scorer = make_scorer(functions.obeys, timeout_s=1.0)
    score_texts(scorer, "give 0")  # the workers are up
    started = time.perf_counter()
    # a loop in Python, one in C, and an end that looks like success to pebble
    scores = score_texts(scorer, "hang", "give 1", "compute", "exit 0", "give 2")
    assert time.perf_counter() - started < 3 * 1.0 + GRACE_S
    late = "part0: timeout after 1 s"
    ended = "part0: the verifier ended its process with status 0"
    assert [s.error for s in scores] == [late, None, late, ended, None]
    assert [s.reward for s in scores] == [0.0, 1.0, 0.0, None, 2.0]
    assert [s.timed_out for s in scores] == [True, False, True, False, False]


def test_time_limits_do_not_include_waiting_for_a_worker(make_scorer: MakeScorer) -> None:
    # four samples of 1.5 s for two workers: the last ones are done 3 s after they were handed in
    scores = score_texts(make_scorer(functions.sleeps, timeout_s=2.7), *["1.5"] * 4)
    assert [s.reward for s in scores] == [1.0] * 4


def test_workers_killed_from_outside_are_replaced(make_scorer: MakeScorer) -> None:
    scorer = make_scorer(functions.pid)
    killed = {int(s.reward or 0) for s in score_texts(scorer, *"abcdef")}
    for process in killed:
        os.kill(process, signal.SIGKILL)
    deadline = time.perf_counter() + GRACE_S
    while scorer._pool._pool.active and time.perf_counter() < deadline:
        time.sleep(0.05)  # until the pool has seen it
    replaced = {int(s.reward or 0) for s in score_texts(scorer, *"abcdef")}
    assert 0 not in replaced
    assert not replaced & killed


def test_closing_does_not_wait_for_a_busy_worker(make_scorer: MakeScorer) -> None:
    scorer = make_scorer(functions.sleeps)
    (call,) = scorer._calls(1)
    future = scorer._pool._submit(call, [(problem(), answer("600"))])
    deadline = time.perf_counter() + GRACE_S
    while not future.running() and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert future.running()
    started = time.perf_counter()
    scorer.close()
    assert time.perf_counter() - started < GRACE_S


# ---- functions of the user's ---------------------------------------------------------------------


def custom(name: str) -> CustomFunction:
    return CustomFunction(f"{HERE}:{name}")


def test_columns_come_as_lists() -> None:
    given = Problem(id="p", prompt="3 + 4", columns={"answer": 7, "tags": ["sum", "easy"]})
    completion = Completion(
        token_ids=(5, 6, 1),
        logprobs=(0.0,) * 3,
        entropies=None,
        finish_reason=FinishReason.STOP,
        text="7",
    )
    assert custom("remembers")(given, completion) == 1.0


def test_chat_comes_as_messages() -> None:
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "3 + 4"},
    )
    assert custom("remembers_chat")(Problem(id="p", prompt=messages), answer("7")) == 1.0


def test_none_leaves_the_sample_out() -> None:
    assert custom("skips")(problem(), answer("7")) is None


@pytest.mark.parametrize("name", ["gives_a_number", "gives_two"])
def test_wrong_returns_are_named(name: str) -> None:
    with pytest.raises(TypeError, match=f"{HERE}:{name} must return a list with one reward"):
        custom(name)(problem(), answer("7"))


def test_function_without_room_for_columns_is_an_error_of_the_sample() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'prompts'"):
        custom("takes_no_columns")(problem(), answer("7"))


# ---- from a configuration ------------------------------------------------------------------------


def task(*columns: str, verifier: Any = None) -> Any:
    return SimpleNamespace(columns=frozenset(columns), verifier=verifier)


def build(*rewards: dict[str, Any], task: Any, **settings: Any) -> Scorer:
    return build_scorer(parse_config({"rewards": list(rewards), **settings}), task)


def built_names(*rewards: dict[str, Any], task: Any) -> list[str]:
    scorer = build(*rewards, task=task)
    return [function.name for function in scorer._functions]


def test_task_without_a_verifier() -> None:
    with pytest.raises(ConfigError, match="this task has no verifier of its own: use 'math', "):
        build({"type": "task"}, task=task("answer"))


@pytest.mark.parametrize("kind", ["math", "integer"])
def test_missing_column_names_the_nearest(kind: str) -> None:
    with pytest.raises(
        DataError, match=r"no column 'answr' .* it has answer, question; did you mea"
    ):
        build({"type": kind, "answer_column": "answr"}, task=task("question", "answer"))
    with pytest.raises(DataError, match=r"no column 'reward_model' .* it has question$"):
        build({"type": kind, "answer_column": "reward_model.truth"}, task=task("question"))


def test_pattern_that_is_no_regular_expression() -> None:
    with pytest.raises(ConfigError, match=r"rewards.pattern = '\(a' is not a regular expression: "):
        build({"type": "format", "pattern": "(a"}, task=task())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (f"{HERE}:remember", f"did you mean {HERE}:remembers"),
        (f"{HERE}:zzz", f"{HERE} has no 'zzz'$"),
        (f"{HERE}:NOT_A_FUNCTION", "is not a function but int"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        (HERE, "neither a known name nor package.module:function"),
        (":f", "cannot import ''"),
        (".near:f", "cannot import '.near'"),
    ],
)
def test_function_that_cannot_be_found(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build({"type": "custom", "path": path}, task=task())
    assert str(caught.value).startswith(f"rewards.path = {path!r}")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs math_verify: pip install 'forkpoint\[math\]'"):
        build({"type": "math"}, task=task("answer"))


def test_parts_have_names_of_their_own() -> None:
    one, two = {"type": "format", "pattern": "a"}, {"type": "format", "pattern": "b"}
    assert built_names(one, two, one, task=task()) == ["format", "format_2", "format_3"]
    # a name that is taken by the length penalty
    assert built_names({"type": "custom", "path": f"{HERE}:overlong"}, task=task()) == [
        "overlong_1"
    ]


def test_verifier_as_a_reward_function_sees_columns_and_text() -> None:
    call = OfColumns(IntegerVerifier("answer"))
    assert call(problem(answer=7), answer(r"\boxed{7}")) == 1.0
    assert call(problem(answer=8), answer(r"\boxed{7}")) == 0.0


def test_everything_together() -> None:
    scorer = build(
        {"type": "task", "weight": 4.0, "timeout_s": PATIENT_S},
        {"type": "math", "timeout_s": PATIENT_S},
        {"type": "integer", "weight": 0.5, "timeout_s": PATIENT_S},
        {"type": "format", "pattern": r".*7.*", "timeout_s": PATIENT_S},
        {"type": "custom", "path": f"{HERE}:overlong", "weight": 8.0, "timeout_s": PATIENT_S},
        task=task("answer", verifier=FormatVerifier(".*")),
        rollout={"max_new_tokens": 10},
        overlong={"buffer": 4, "penalty": 1.0},
    )
    try:
        (score,) = scorer.score([(problem(answer="8"), answer(r"\boxed{7}", tokens=9))])
    finally:
        scorer.close()
    assert score.parts == {
        "task": 1.0,
        "math": 0.0,
        "integer": 0.0,
        "format": 1.0,
        "overlong_5": 0.5,
        "overlong": -0.75,  # (6 - 9) / 4
    }
    assert score.reward == pytest.approx(4.0 + 1.0 + 8 * 0.5 - 0.75)
    assert score.error is None


def test_hostile_mathematics_and_patterns_are_cut_off() -> None:
    scorer = build(
        {"type": "math", "timeout_s": 1.0},
        {"type": "format", "pattern": "(a+)+b", "timeout_s": 1.0},
        task=task("answer"),
    )
    texts = [r"\boxed{9^{9^{9^{9}}}}", "a" * 40]
    try:
        scores = scorer.score([(problem(answer="7"), answer(text)) for text in texts])
    finally:
        scorer.close()
    for score, late in zip(scores, ("math", "format"), strict=True):
        assert score.reward == 0.0
        assert f"{late}: timeout after 1 s" in (score.error or "")


def test_imports_are_not_on_the_verifiers_clock() -> None:
    # the module sleeps for 1.5 s when it is imported, here and in each worker
    path = "tests.unit.slow_to_import:reward"
    scorer = build({"type": "custom", "path": path, "timeout_s": 1.0}, task=task())
    try:
        assert [s.reward for s in score_texts(scorer, "a", "b", "c")] == [1.0] * 3
    finally:
        scorer.close()
