"""Scores completions in worker processes: one that hangs is killed, one that raises is noted."""

import math
import os
from collections.abc import Callable, Iterator, Sequence

from forkpoint.config.rewards import OverlongConfig, ScoringConfig
from forkpoint.errors import Interrupted
from forkpoint.ranks import local_size
from forkpoint.rewards.pool import Call, RewardFunction, WorkerPool
from forkpoint.rewards.worker import Part, describe, evaluate
from forkpoint.types import Completion, Problem, Score

OVERLONG = "overlong"
"""The name of the length penalty among the parts."""
MOST_WORKERS = 8
"""Unless ``scoring.workers`` says otherwise."""
DEFAULTS = ScoringConfig()


def default_workers() -> int:
    """One a CPU that is this process's share, ``MOST_WORKERS`` at most."""
    return min(MOST_WORKERS, max(1, (os.cpu_count() or 1) // local_size()))


class Scorer:
    """reward = sum of weight * part, plus the overlong penalty.

    A part that is None leaves the sample out (its reward is None). A part whose verifier raised or
    died does too, and the score says why: a failure is never silently a 0. A part whose verifier
    used up its time or memory is 0 unless ``on_timeout`` says otherwise, since a completion must
    not escape being wrong by being endless; the score says that too.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        overlong: OverlongConfig,
        *,
        max_new_tokens: int,
        scoring: ScoringConfig = DEFAULTS,
    ) -> None:
        self._functions = functions
        self._overlong = overlong
        self._limit = max_new_tokens
        self._pool = WorkerPool(
            workers=scoring.workers
            or min(MOST_WORKERS, max(1, (os.cpu_count() or 1) // local_size())),
            memory_gb=scoring.memory_gb,
            imports=[name for f in functions for name in f.imports],
        )

    def score(
        self,
        pairs: Sequence[tuple[Problem, Completion]],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Score]:
        """One score per pair, in order.

        Raises:
            Interrupted: ``should_stop()`` turned true; nothing is kept.
            RewardError: a function that no worker can call.
        """
        parts: dict[tuple[str, int], Part] = {}
        for function in self._functions:
            if function.in_process:
                results = _called_here(function, pairs, should_stop)
                parts |= {(function.name, i): part for i, part in enumerate(results)}
        for call, results in self._pool.results(self._calls(len(pairs)), pairs, should_stop):
            for sample, part in zip(call.samples, results, strict=True):
                parts[call.function.name, sample] = _verdict(call.function, part)
        return [
            self._combine(completion, [parts[f.name, i] for f in self._functions])
            for i, (_, completion) in enumerate(pairs)
        ]

    def close(self) -> None:
        """End the workers, busy or not."""
        self._pool.close()

    def _calls(self, count: int) -> Iterator[Call]:
        for function in self._functions:
            if function.in_process:
                continue
            for first in range(0, count, function.batch_size):
                last = min(first + function.batch_size, count)
                yield Call(function, tuple(range(first, last)))

    def _combine(self, completion: Completion, results: Sequence[Part]) -> Score:
        parts = {f.name: part.value for f, part in zip(self._functions, results, strict=True)}
        verdict = next((parts[f.name] for f in self._functions if f.is_verifier), None)
        weighted = [f.weight * part for f in self._functions if (part := parts[f.name]) is not None]
        complete = len(weighted) == len(self._functions)
        if self._overlong.buffer:
            penalty = overlong_penalty(len(completion), self._limit, self._overlong)
            parts[OVERLONG] = penalty
            weighted.append(penalty)
        errors = [part.error for part in results if part.error is not None]
        return Score(
            reward=math.fsum(weighted) if complete else None,
            verdict=verdict,
            parts=parts,
            error="; ".join(errors) or None,
            timed_out=any(part.timed_out for part in results),
        )


def overlong_penalty(length: int, limit: int, config: OverlongConfig) -> float:
    """DAPO's soft overlong punishment (2503.14476, Eq. 13) of a completion of ``length`` tokens.

    0 up to ``limit - buffer`` tokens, then linearly down to ``-penalty`` at ``limit``, the most
    tokens a completion can have:

        penalty * min(0, ((limit - buffer) - length) / buffer)
    """
    if config.buffer == 0:
        return 0.0
    return config.penalty * min(0.0, (limit - config.buffer - length) / config.buffer)


def _called_here(
    function: RewardFunction,
    pairs: Sequence[tuple[Problem, Completion]],
    should_stop: Callable[[], bool],
) -> Iterator[Part]:
    """One part per pair; a pair on which the function raised has its error."""
    for pair in pairs:
        if should_stop():
            raise Interrupted("stopped while scoring")
        try:
            (part,) = evaluate(function.call, [pair])
        except Exception as error:  # whatever a verifier raises is data
            part = Part(None, describe(error))
        yield _verdict(function, part)


def _verdict(function: RewardFunction, part: Part) -> Part:
    """The part with its function's name, and its value where time or memory ran out."""
    value = 0.0 if part.timed_out and function.on_timeout == "wrong" else part.value
    error = None if part.error is None else f"{function.name}: {part.error}"
    return Part(value, error, part.timed_out)
