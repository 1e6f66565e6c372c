"""Verifiers that hang, eat memory, start processes or die with the run: what is left of it."""

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import forkpoint
from forkpoint.config import parse_config
from forkpoint.config.rewards import OverlongConfig, ScoringConfig
from forkpoint.errors import Interrupted, RewardError
from forkpoint.evaluation.evaluate import accuracy, tally
from forkpoint.rewards import Scorer, build_scorer, pool, worker
from forkpoint.rewards.build import CustomFunction
from forkpoint.rewards.scorer import RewardFunction
from forkpoint.sampling.collect import StepRollouts
from forkpoint.training.metrics import rollout_metrics
from forkpoint.types import Completion, FinishReason, Problem, Score
from tests.unit import reward_functions as functions
from tests.unit.test_evaluate import scored

GRACE_S = 60.0
"""What starting processes may take on a busy machine."""

RUN = """
import sys
from forkpoint.config.rewards import OverlongConfig
from forkpoint.rewards.scorer import RewardFunction, Scorer
from forkpoint.types import Completion, FinishReason, Problem
from tests.unit import reward_functions as functions

if __name__ == "__main__":
    part = RewardFunction(name="p", call=functions.notes_pid, weight=1.0, timeout_s=600)
    scorer = Scorer([part], OverlongConfig(), max_new_tokens=10)
    problem = Problem(id="p", prompt="?", columns={"folder": sys.argv[1]})
    answers = [
        Completion(
            token_ids=(5,), logprobs=(0.0,), entropies=None, finish_reason=FinishReason.STOP, text=t
        )
        for t in ("hang", "compute")
    ]
    scorer.score([(problem, answer) for answer in answers])
"""


def pair(text: str, **columns: Any) -> tuple[Problem, Completion]:
    completion = Completion(
        token_ids=(5,),
        logprobs=(0.0,),
        entropies=None,
        finish_reason=FinishReason.STOP,
        text=text,
    )
    return Problem(id="p", prompt="?", columns=columns), completion


@pytest.fixture
def make_scorer() -> Iterator[Callable[..., Scorer]]:
    made: list[Scorer] = []

    def make(call: Any, *, scoring: ScoringConfig | None = None, **settings: Any) -> Scorer:
        part = RewardFunction(
            name="part", call=call, weight=2.0, **{"timeout_s": GRACE_S, **settings}
        )
        scoring = scoring or ScoringConfig(workers=2)
        made.append(Scorer([part], OverlongConfig(), max_new_tokens=10, scoring=scoring))
        return made[-1]

    yield make
    for scorer in made:
        scorer.close()


def score_texts(scorer: Scorer, *texts: str, **columns: Any) -> list[Score]:
    return scorer.score([pair(text, **columns) for text in texts])


def wait_for(condition: Callable[[], Any], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(held)


def pids_in(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir()]


def lives(pid: int) -> bool:
    """Whether the process runs: it is there and no zombie that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# ---- the run's end -------------------------------------------------------------------------------


def test_workers_die_with_a_run_that_is_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    script = tmp_path / "run.py"
    script.write_text(RUN)
    folder = tmp_path / "pids"
    folder.mkdir()
    run = subprocess.Popen([sys.executable, str(script), str(folder)], env=environment)
    try:
        assert wait_for(lambda: len(pids_in(folder)) == 2, GRACE_S)
    finally:
        run.kill()
        run.wait()
    spinning = pids_in(folder)
    gone = wait_for(lambda: not any(map(lives, spinning)), 2.0)
    for pid in filter(lives, spinning):
        os.kill(pid, signal.SIGKILL)
    assert gone


def test_stop_is_obeyed_while_every_verifier_hangs(make_scorer: Callable[..., Scorer]) -> None:
    scorer = make_scorer(functions.obeys)
    assert score_texts(scorer, "give 1")[0].reward == 2.0  # the workers are up
    asked: list[float] = []

    def should_stop() -> bool:
        if not asked and time.monotonic() > begun + 0.5:
            asked.append(time.monotonic())
        return bool(asked)

    begun = time.monotonic()
    with pytest.raises(Interrupted, match="stopped while scoring"):
        scorer.score([pair("hang")] * 16, should_stop)
    assert (
        time.monotonic() - asked[0] < 5
    )  # about 0.2 s on an idle machine; four seconds a sample on two workers: 32
    assert score_texts(scorer, "give 3")[0].reward == 6.0  # and it can score again


def test_what_a_verifier_started_is_killed_with_it(
    make_scorer: Callable[..., Scorer], tmp_path: Path
) -> None:
    scorer = make_scorer(functions.starts_a_process, timeout_s=1.0)
    assert score_texts(scorer, "", folder=str(tmp_path))[0].timed_out
    (started,) = pids_in(tmp_path)
    assert wait_for(lambda: not lives(started), 5.0)


def test_other_systems_watch_their_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    parents = iter([7, 7, 1])
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    worker._die_with(7)
    for thread in threading.enumerate():
        if thread.daemon and thread is not threading.current_thread():
            thread.join(1.0)
    assert ended == [1]
    worker._limit_memory(1.0)  # there is none: nothing is set


def test_a_worker_whose_parent_is_gone_already_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(worker.ctypes, "CDLL", lambda name: FakeC())
    worker._die_with(os.getppid())
    assert ended == []
    worker._die_with(-1)
    assert ended == [1]


class FakeC:
    """The C library, without the request to be killed."""

    def prctl(self, option: int, value: int) -> None:
        assert (option, value) == (1, signal.SIGKILL)


# ---- time and memory -----------------------------------------------------------------------------


@pytest.mark.parametrize(("verdict", "reward"), [("wrong", 0.0), ("leave_out", None)])
def test_what_a_timeout_says_is_a_setting(
    make_scorer: Callable[..., Scorer], verdict: str, reward: float | None
) -> None:
    scorer = make_scorer(functions.obeys, timeout_s=0.5, on_timeout=verdict)
    late, raised = score_texts(scorer, "hang", "raise")
    assert late == Score(
        reward=reward, parts={"part": reward}, error="part: timeout after 0.5 s", timed_out=True
    )
    assert (raised.reward, raised.timed_out) == (None, False)  # a fault of the verifier's


@pytest.mark.skipif(sys.platform != "linux", reason="no other system limits a process's memory")
def test_memory_is_limited_and_what_runs_out_of_it_is_wrong(
    make_scorer: Callable[..., Scorer],
) -> None:
    scoring = ScoringConfig(workers=1, memory_gb=0.3)
    scores = score_texts(make_scorer(functions.fills_memory, scoring=scoring), "100", "900", "100")
    assert [s.reward for s in scores] == [2.0, 0.0, 2.0]
    assert scores[1].error == "part: out of memory: more than scoring.memory_gb = 0.3"
    assert [s.timed_out for s in scores] == [False, True, False]


def test_a_full_memory_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(problem: Problem, completion: Completion) -> float:
        raise MemoryError

    def ends(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", ends)
    with pytest.raises(SystemExit) as ended:
        worker.run(full, [pair("a")])
    assert ended.value.code == worker.OUT_OF_MEMORY


@pytest.mark.skipif(sys.platform != "linux", reason="no other system limits a process's memory")
def test_a_lower_limit_of_the_machines_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[Any] = []
    monkeypatch.setattr(worker.resource, "setrlimit", lambda _, limit: limits.append(limit))
    monkeypatch.setattr(worker.resource, "getrlimit", lambda _: (10**12, 10**12))
    worker._limit_memory(2.0)
    worker._limit_memory(2000.0)
    ((soft, hard),) = limits
    assert hard == 10**12
    assert 2 * 10**9 < soft < 10**12


def test_an_evaluation_of_timeouts_alone_is_no_accuracy() -> None:
    late = Score(
        reward=0.0,
        verdict=0.0,
        parts={"math": 0.0},
        error="math: timeout after 4 s",
        timed_out=True,
    )
    with pytest.raises(RewardError, match=r"could be scored; .*: math: timeout after"):
        accuracy(tally((scored(0, late, late),)), seed=0)
    right = Score(reward=1.0, verdict=1.0, parts={"math": 1.0})
    assert accuracy(tally((scored(0, late, right),)), seed=0).value == 0.5


# ---- a pool that breaks --------------------------------------------------------------------------


def test_a_reward_that_no_worker_can_read_ends_the_run(
    make_scorer: Callable[..., Scorer],
) -> None:
    with pytest.raises(RewardError, match="part: worker processes died 3 times before they could"):
        score_texts(make_scorer(functions.NotThere()), "a")


def test_a_call_that_got_lost_is_made_again(
    make_scorer: Callable[..., Scorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = make_scorer(functions.one)
    submit = scorer._pool._submit
    lost: list[pool.Call] = []
    answers_too_late = pool.Future()

    def loses_the_first(call: pool.Call, samples: Any) -> Any:
        lost.append(call)
        # no answer for longer than this, beyond the limit of the call
        monkeypatch.setattr(pool, "STALLED_S", 0.5 - GRACE_S if len(lost) == 1 else GRACE_S)
        if len(lost) == 1:
            return answers_too_late
        answers_too_late.set_result([worker.Part(7.0)])
        return submit(call, samples)

    monkeypatch.setattr(scorer._pool, "_submit", loses_the_first)
    (score,) = score_texts(scorer, "a")
    assert score.reward == 2.0
    assert [call.attempt for call in lost] == [1, 2]


def test_long_scoring_says_that_it_goes_on(
    make_scorer: Callable[..., Scorer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(pool, "NOTE_S", 0.0)
    score_texts(make_scorer(functions.obeys, timeout_s=0.3), "hang", "give 1")
    assert caplog.messages[-1].endswith("2 of 2 calls done, 1 completions timed out")


# ---- several samples in a call -------------------------------------------------------------------


def test_a_judge_gets_so_many_samples_in_a_call(make_scorer: Callable[..., Scorer]) -> None:
    judge = CustomFunction("tests.unit.reward_functions:by_the_batch")
    scores = score_texts(make_scorer(judge, batch_size=3), *"abcd", "skip")
    assert [s.reward for s in scores] == [6.0, 6.0, 6.0, 4.0, None]


def test_one_sample_of_a_batch_costs_no_other_its_reward(
    make_scorer: Callable[..., Scorer],
) -> None:
    judge = CustomFunction("tests.unit.reward_functions:by_the_batch")
    scorer = make_scorer(judge, batch_size=3, timeout_s=0.5)
    texts = ["a", "raise", "b", "c", "hang", "d", "e", "nan", "f", "g", "too many", "h"]
    scores = score_texts(scorer, *texts)
    assert [s.reward for s in scores[:3]] == [2.0, None, 2.0]  # one at a time
    assert "ZeroDivisionError: of the judge" in (scores[1].error or "")
    assert [s.reward for s in scores[3:6]] == [2.0, 0.0, 2.0]
    assert scores[4].error == "part: timeout after 0.5 s"
    assert [s.reward for s in scores[6:9]] == [6.0, None, 6.0]  # the call itself was good
    assert scores[7].error == "part: ValueError: the reward nan is not finite"
    assert [s.reward for s in scores[9:]] == [2.0, 2.0, 2.0]


def test_columns_of_a_batch_are_lists_with_none_where_one_is_missing() -> None:
    judge = CustomFunction("tests.unit.reward_functions:columns_of")
    assert judge.batch([pair("x", a=1, b=2), pair("y", b=3)]) == [("x", 1, 2), ("y", None, 3)]


# ---- from a configuration ------------------------------------------------------------------------


def test_settings_reach_the_workers() -> None:
    config = parse_config(
        {
            "rewards": [
                {
                    "type": "custom",
                    "path": "tests.unit.reward_functions:skips",
                    "batch_size": 8,
                    "on_timeout": "leave_out",
                }
            ],
            "scoring": {"workers": 3, "memory_gb": 1.5},
        }
    )
    scorer = build_scorer(config, task=None)  # pyright: ignore[reportArgumentType]
    (function,) = scorer._functions
    assert (function.batch_size, function.on_timeout) == (8, "leave_out")
    assert (scorer._pool._workers, scorer._pool._memory_gb) == (3, 1.5)


def test_a_worker_for_each_cpu_up_to_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, workers in ((1, 1), (6, 6), (96, 8), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda cpus=cpus: cpus)
        assert Scorer([], OverlongConfig(), max_new_tokens=1)._pool._workers == workers


# ---- what an error says --------------------------------------------------------------------------


def error_of(name: str, text: str) -> str:
    judge = CustomFunction(f"tests.unit.reward_functions:{name}")
    (part,) = worker.run(judge, [pair(text)]) or []
    return part.error or ""


def test_errors_name_the_users_file_and_line() -> None:
    source = Path(functions.__file__).read_text().splitlines()
    line = next(n for n, code in enumerate(source, 1) if "json.loads" in code)
    # raised within json, called from the user's line
    assert error_of("fails_in_a_library", "{").startswith(
        f"reward_functions.py:{line}: JSONDecodeError: Expecting property name"
    )
    assert error_of("fails_in_a_library", "{}") == f"reward_functions.py:{line}: KeyError: 'score'"


def test_errors_are_one_short_line() -> None:
    error = error_of("raises_a_long_text", "")
    assert len(error) == worker.MOST_CHARACTERS
    assert "\n" not in error
    assert error.endswith("…")


# ---- those who score -----------------------------------------------------------------------------


def test_everyone_who_scores_hands_on_the_wish_to_stop() -> None:
    calls = [
        (path.name, len(node.args))
        for path in Path(forkpoint.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("scorer.score")
    ]
    assert len(calls) >= 2
    assert [name for name, arguments in calls if arguments != 2] == []


def test_timeouts_are_counted_apart_from_other_errors() -> None:
    late = Score(
        reward=0.0,
        verdict=0.0,
        parts={"math": 0.0},
        error="math: timeout after 4 s",
        timed_out=True,
    )
    raised = Score(reward=None, parts={"math": None}, error="math: ValueError: no")
    groups = (scored(0, late, late, raised, Score(reward=1.0, parts={"math": 1.0})),)
    metrics = rollout_metrics(
        StepRollouts(
            accepted=groups, rejected=(), next_serial=1, rounds=1, sample_s=0.0, score_s=0.0
        )
    )
    assert (metrics["reward/errors"], metrics["reward/timeouts"]) == (3, 2)
    assert metrics["reward/mean"] == pytest.approx(1 / 3)
