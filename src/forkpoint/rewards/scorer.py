"""Scores completions in worker processes: one that hangs is killed, one that raises is noted."""

import importlib
import math
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from forkpoint.config.stages import OverlongConfig
from forkpoint.rewards.overlong import overlong_penalty
from forkpoint.types import Completion, Problem, Score

if TYPE_CHECKING:  # engines are used where no verifier runs and pebble is not installed
    from pebble import ProcessPool

WORKERS = 2

OVERLONG = "overlong"
"""The name of the length penalty among the parts."""

Part: TypeAlias = tuple[float | None, str | None]
"""A part of the reward, and why it is missing if that is for a fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardFunction:
    """One part of the reward."""

    name: str
    call: Callable[[Problem, Completion], float | None]
    """Picklable; runs in a worker."""
    weight: float
    timeout_s: float
    is_verifier: bool = False
    """Whether this part is the score's verdict; of one function at most."""
    imports: tuple[str, ...] = ()
    """Modules a worker loads when it starts: slow ones would use up the first sample's time."""


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
        self._pool = self._new_pool()

    def score(self, pairs: Sequence[tuple[Problem, Completion]]) -> list[Score]:
        """One score per pair, in order."""
        futures = [
            [self._schedule(function, problem, completion) for function in self._functions]
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

    def _new_pool(self) -> "ProcessPool":
        from pebble import ProcessPool

        # Spawned, not forked: a copy of this process would copy the locks of torch's threads.
        return ProcessPool(
            max_workers=WORKERS,
            context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=[tuple(name for f in self._functions for name in f.imports)],
        )

    def _schedule(self, function: RewardFunction, problem: Problem, completion: Completion) -> Any:
        """The future of a ``Part``."""
        if not self._pool.active:  # a worker that dies between two tasks takes its pool with it
            self.close()
            self._pool = self._new_pool()
        arguments = [function.call, problem, completion]
        return self._pool.schedule(_run, args=arguments, timeout=function.timeout_s)

    def _result(self, function: RewardFunction, future: Any) -> Part:
        from pebble import ProcessExpired

        try:
            part, error = future.result()
        except FutureTimeout:
            part, error = None, f"timeout after {function.timeout_s:g} s"
        except ProcessExpired as died:
            part, error = None, f"the verifier's process died ({died})"
        except Exception as fault:  # the pool broke, or its arguments cannot be pickled
            part, error = None, f"{type(fault).__name__}: {fault}"
        return part, None if error is None else f"{function.name}: {error}"

    def _combine(self, completion: Completion, results: Sequence[Part]) -> Score:
        parts = {f.name: part for f, (part, _) in zip(self._functions, results, strict=True)}
        verdict = next((parts[f.name] for f in self._functions if f.is_verifier), None)
        weighted = [f.weight * part for f in self._functions if (part := parts[f.name]) is not None]
        complete = len(weighted) == len(self._functions)
        if self._overlong.buffer:
            penalty = overlong_penalty(
                len(completion.token_ids),
                limit=self._limit,
                buffer=self._overlong.buffer,
                penalty=self._overlong.penalty,
            )
            parts[OVERLONG] = penalty
            weighted.append(penalty)
        errors = [error for _, error in results if error is not None]
        return Score(
            reward=math.fsum(weighted) if complete else None,
            verdict=verdict,
            parts=parts,
            error="; ".join(errors) or None,
        )


def _run(
    call: Callable[[Problem, Completion], float | None], problem: Problem, completion: Completion
) -> Part:
    """In a worker. Only numbers and text go back: an exception of the user's may not survive the
    way, and ``sys.exit()`` would end the run."""
    try:
        value = call(problem, completion)
        if value is None:
            return None, None
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"the reward {value} is not finite")
        return value, None
    except BaseException as error:  # whatever a verifier raises is data
        return None, f"{type(error).__name__}: {error}"


def _start_worker(imports: Sequence[str]) -> None:
    # Ctrl-C reaches the whole process group; the workers are ended by ``close``.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The default ends a worker at once, even in the middle of a computation in C.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in imports:
        with suppress(Exception):  # raised again, and noted, when the verifier needs it
            importlib.import_module(name)
