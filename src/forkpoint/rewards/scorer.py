"""Scores completions in worker processes: one that hangs is killed, one that raises is noted."""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any

from pebble import ProcessExpired, ProcessPool

from forkpoint.config.stages import OverlongConfig
from forkpoint.rewards.overlong import overlong_penalty
from forkpoint.types import Completion, Problem, Score

WORKERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardFunction:
    """One part of the reward."""

    name: str
    call: Callable[[Problem, Completion], float | None]
    """Picklable; runs in a worker."""
    weight: float
    timeout_s: float


class Scorer:
    """reward = sum of weight * part, plus the overlong penalty.

    A part that is None leaves the sample out (its reward is None). A part whose verifier raised,
    hung or died does too, and the score says why: a failure is never silently a 0.
    """

    def __init__(
        self, functions: Sequence[RewardFunction], overlong: OverlongConfig, *, max_new_tokens: int
    ) -> None:
        self._functions = functions
        self._overlong = overlong
        self._limit = max_new_tokens
        # Spawned, not forked: a copy of this process would copy the locks of torch's threads.
        self._pool = ProcessPool(
            max_workers=WORKERS,
            context=multiprocessing.get_context("spawn"),
            initializer=_ignore_interrupt,
        )

    def score(self, pairs: Sequence[tuple[Problem, Completion]]) -> list[Score]:
        """One score per pair, in order."""
        futures = [
            [
                self._pool.schedule(_run, args=[f.call, problem, completion], timeout=f.timeout_s)
                for f in self._functions
            ]
            for problem, completion in pairs
        ]
        return [
            self._combine(
                completion, [self._result(*x) for x in zip(self._functions, row, strict=True)]
            )
            for (_, completion), row in zip(pairs, futures, strict=True)
        ]

    def close(self) -> None:
        """End the workers, busy or not."""
        self._pool.stop()
        self._pool.join()

    def _result(self, function: RewardFunction, future: Any) -> tuple[float | None, str | None]:
        """A part and why it is missing, if it is for a fault."""
        try:
            return future.result(), None
        except FutureTimeout:
            return None, f"{function.name}: timeout after {function.timeout_s:g} s"
        except ProcessExpired as error:
            return None, f"{function.name}: the verifier's process died ({error})"
        except Exception as error:  # whatever a verifier raises is data
            return None, f"{function.name}: {type(error).__name__}: {error}"

    def _combine(
        self, completion: Completion, results: Sequence[tuple[float | None, str | None]]
    ) -> Score:
        parts = {f.name: part for f, (part, _) in zip(self._functions, results, strict=True)}
        total: float | None = 0.0
        for function, (part, _) in zip(self._functions, results, strict=True):
            total = None if part is None or total is None else total + function.weight * part
        if self._overlong.buffer:
            parts["overlong"] = overlong_penalty(
                len(completion.token_ids),
                limit=self._limit,
                buffer=self._overlong.buffer,
                penalty=self._overlong.penalty,
            )
            total = None if total is None else total + parts["overlong"]
        errors = [error for _, error in results if error is not None]
        return Score(reward=total, parts=parts, error="; ".join(errors) or None)


def _run(
    call: Callable[[Problem, Completion], float | None], problem: Problem, completion: Completion
) -> float | None:
    value = call(problem, completion)
    if value is not None and not abs(value) < float("inf"):
        raise ValueError(f"the reward {value} is not finite")
    return value


def _ignore_interrupt() -> None:
    """Ctrl-C reaches the whole process group; the workers are ended by ``close``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
