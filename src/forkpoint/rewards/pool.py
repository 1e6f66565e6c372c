"""Processes that call reward functions: many calls, each within its time, until told to stop."""

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnContext, SpawnProcess
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

from forkpoint.errors import Interrupted, RewardError
from forkpoint.rewards.worker import OUT_OF_MEMORY, Part, Sample, describe, run, start
from forkpoint.types import Completion, Problem

if TYPE_CHECKING:  # engines are used where no verifier runs and pebble is not installed
    from pebble import ProcessExpired, ProcessPool

ENDED_ITSELF = 113
"""Stands for a worker's exit status of 0."""
MOST_ATTEMPTS = 3
"""Of one call, when workers die before they can take it."""
CALLS_AHEAD = 256
"""Calls handed out for each worker: many, since handing out takes as long as a quick verifier."""
POLL_S = 0.2
"""How often ``should_stop`` is called."""
NOTE_S = 60.0
"""How often a line says that scoring goes on."""
TIMEOUT = "timeout after"
"""How the error of a call begins that used up its time, and not its memory."""
STALLED_S = 120.0
"""Beyond the time limit, without any answer: a call got lost with a worker that died."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardFunction:
    """One part of the reward."""

    name: str
    call: Callable[[Problem, Completion], float | None]
    """Picklable; runs in a worker. For several samples its method ``batch`` is called with a list
    of (problem, completion)."""
    weight: float
    timeout_s: float
    """Per completion."""
    is_verifier: bool = False
    """Whether this part is the score's verdict; of one function at most."""
    on_timeout: Literal["wrong", "leave_out"] = "wrong"
    """What a time-out or a full memory says: 0, or nothing."""
    batch_size: int = 1
    """Completions in one call."""
    imports: tuple[str, ...] = ()
    """Modules a worker loads when it starts: slow ones would use up the first sample's time."""
    in_process: bool = False
    """Called here and not in a worker, for a function that no other process can import: without a
    limit of time or memory."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a reward function, for the samples with these numbers."""

    function: RewardFunction
    samples: tuple[int, ...]
    attempt: int = 1

    @property
    def limit_s(self) -> float:
        """Of the whole call."""
        return self.function.timeout_s * len(self.samples)


class WorkerPool:
    """Spawned processes that die with this one, and in which no call outlives its limits."""

    def __init__(self, *, workers: int, memory_gb: float, imports: Sequence[str]) -> None:
        self._workers, self._memory_gb, self._imports = workers, memory_gb, tuple(imports)
        self._context = _Context()
        self._pool = self._new_pool()

    def results(
        self, calls: Iterable[Call], samples: Sequence[Sample], should_stop: Callable[[], bool]
    ) -> Iterator[tuple[Call, list[Part]]]:
        """Each call with a part for each of its samples, in the order in which they are done.

        If a call for several samples fails, hangs or dies, each is scored in a call of its own.

        Raises:
            Interrupted: ``should_stop()`` turned true; the workers are ended.
            RewardError: workers die again and again before they can take a call.
        """
        waiting, running = deque(calls), dict[Future[Any], Call]()
        finished = SimpleQueue[Future[Any]]()
        progress = _Progress(len(waiting))
        try:
            while waiting or running:
                if should_stop():
                    raise Interrupted("stopped while scoring")
                while waiting and len(running) < CALLS_AHEAD * self._workers:
                    call = waiting.popleft()
                    future = self._submit(call, samples)
                    running[future] = call
                    future.add_done_callback(finished.put)
                try:
                    future = finished.get(timeout=POLL_S)
                except Empty:
                    if progress.stalled(running.values()):
                        self.close()
                        waiting.extendleft(map(_again, running.values()))
                        running.clear()
                        progress.last = time.monotonic()
                    continue
                call = running.pop(future, None)
                if call is None:  # of a pool that was given up
                    continue
                parts, calls_anew = self._outcome(call, future)
                waiting.extendleft(calls_anew)
                if parts:
                    progress.add(parts)
                    yield call, parts
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the workers, busy or not, and what they started."""
        self._pool.stop()
        for worker in tuple(self._context.started):
            if worker.pid is not None:  # one that is still starting would miss what join removes
                worker.terminate()
        self._pool.join()

    def _new_pool(self) -> "ProcessPool":
        from pebble import ProcessPool

        return ProcessPool(
            max_workers=self._workers,
            context=self._context,
            initializer=start,
            initargs=[os.getpid(), self._memory_gb, self._imports],
        )

    def _submit(self, call: Call, samples: Sequence[Sample]) -> Future[Any]:
        arguments = [call.function.call, [samples[i] for i in call.samples]]
        try:
            return self._pool.schedule(run, args=arguments, timeout=call.limit_s)
        except RuntimeError:  # closed, or broken by a worker that died between two calls
            self.close()
            self._pool = self._new_pool()
            return self._pool.schedule(run, args=arguments, timeout=call.limit_s)

    def _outcome(self, call: Call, future: Future[Any]) -> tuple[list[Part], list[Call]]:
        """The parts of a call that was done, and the calls to be made in its place."""
        from pebble import ProcessExpired

        match future.exception():  # looked at, not raised: a SystemExit would end the run
            case None:
                parts = future.result()
            case BrokenProcessPool():
                return [], [_again(call)]
            case TimeoutError():
                parts = [Part(None, f"{TIMEOUT} {call.limit_s:g} s", timed_out=True)]
            case ProcessExpired() as died:
                parts = [self._death(died)]
            case fault:  # its arguments cannot be pickled
                parts = [Part(None, describe(fault))]
        if parts is None or len(parts) < len(call.samples):
            return [], [replace(call, samples=(i,), attempt=1) for i in call.samples]
        return parts, []

    def _death(self, died: "ProcessExpired") -> Part:
        if died.exitcode == ENDED_ITSELF:
            return Part(None, "the verifier ended its process with status 0")
        if died.exitcode == OUT_OF_MEMORY:
            limit = f"out of memory: more than scoring.memory_gb = {self._memory_gb:g}"
            return Part(None, limit, timed_out=True)
        return Part(None, f"the verifier's process died with status {died.exitcode}")


class _Worker(SpawnProcess):
    """A process that is ended together with the processes it started."""

    def start(self) -> None:
        """Start it deaf to Ctrl-C, which is the run's business, from its first instruction on."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def terminate(self) -> None:
        """End the group that the worker made its own; itself alone if it had no time to."""
        if self.pid is not None and self.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        super().terminate()

    @property
    def exitcode(self) -> int | None:
        """Never 0: pebble would wait for the call of a worker that ended well."""
        status = super().exitcode
        return ENDED_ITSELF if status == 0 else status


class _Context(SpawnContext):
    """Spawned, not forked: a copy of this process would copy the locks of torch's threads."""

    def __init__(self) -> None:
        self.started = WeakSet[_Worker]()

    def _make(self, *args: Any, **settings: Any) -> SpawnProcess:
        worker = _Worker(*args, **settings)
        self.started.add(worker)
        return worker

    Process = _make  # pyright: ignore[reportAssignmentType]


class _Progress:
    """When something was last done; logs a line a minute."""

    def __init__(self, calls: int) -> None:
        self._calls, self._done, self._timed_out = calls, 0, 0
        self._started = self._noted = self.last = time.monotonic()

    def add(self, parts: Sequence[Part]) -> None:
        """Count a call that is done."""
        self.last = time.monotonic()
        self._done += 1
        self._timed_out += sum(part.timed_out for part in parts)
        if self.last - self._noted > NOTE_S:
            self._noted = self.last
            log.warning(
                "scoring for %.0f s: %d of %d calls done, %d completions timed out",
                *(self.last - self._started, self._done, self._calls, self._timed_out),
            )

    def stalled(self, running: Iterable[Call]) -> bool:
        """Whether nothing was done for longer than any running call may take."""
        longest = max(call.limit_s for call in running)
        return time.monotonic() - self.last > longest + STALLED_S


def _again(call: Call) -> Call:
    if call.attempt == MOST_ATTEMPTS:
        raise RewardError(
            f"{call.function.name}: worker processes died {MOST_ATTEMPTS} times before they could "
            "call it; it must be importable by its module's name, and a script that trains needs "
            "if __name__ == '__main__':"
        )
    return replace(call, attempt=call.attempt + 1)
