"""Each step's rollouts: from which weights they are sampled, and when.

The in-process engine samples from the weights that are trained. Servers are given new weights
before a step, and are believed only when their numbers for a few tokens are the trainer's. With
``rollout.lag = 1`` the next step is sampled meanwhile, from the weights before this step's updates:

    step n trains on what weights n - 2 have sampled (the first two on what the first weights have)
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from forkpoint.batching.batch import lay_out
from forkpoint.config import RunConfig
from forkpoint.policy.precision import unsharded
from forkpoint.policy.served import served_weights
from forkpoint.sampling import StepRollouts, collect_groups
from forkpoint.sampling.base import SamplingSettings
from forkpoint.sampling.vllm import Probe, VllmEngine
from forkpoint.training.parts import RunParts


class StepSampler:
    """Samples each step, now or in the background while the one before is trained on."""

    def __init__(self, config: RunConfig, parts: RunParts, should_stop: Callable[[], bool]) -> None:
        self.config, self._parts = config, parts
        self._should_stop = should_stop
        self._closing = threading.Event()
        self._ahead: _Ahead | None = None
        self._sampling = parts.sampling
        if config.rollout.lag:  # two threads must not speak to the other processes on one line
            self._sampling = replace(parts.sampling, ranks=parts.sampling.ranks.second_line())
        self.metrics: dict[str, float] = {}
        """Of the step that was taken last, beside those of its rollouts."""
        self._given: dict[str, float] = {}
        """What became of weights that were given since."""

    def take(self, step: int, first_serial: int) -> StepRollouts:
        """The rollouts of a step, whose first prompt is ``first_serial``.

        Raises:
            Interrupted, NumericalError, EngineError: see ``Engine.sample``.
        """
        with self.serving():
            ahead, self._ahead = self._ahead, None
            version = ahead.version if ahead else self._version()
            rollouts = ahead.result() if ahead else self._collect(step, first_serial)
        engine = self._parts.sampling.engine
        if isinstance(engine, VllmEngine):
            drawn = sum(self._parts.policy.ranks.gather(engine.take_redrawn()))
            given, self._given = self._given, {}
            self.metrics = given | {
                "rollout/servers": len(engine.alive()),
                "rollout/redrawn": drawn,
                "rollout/lag_updates": self._parts.optimizer.updates - version,
            }
        if self.config.rollout.lag and step < self.config.training.steps:
            self._ahead = _Ahead(
                self._version(), lambda: self._collect(step + 1, rollouts.next_serial)
            )
        return rollouts

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Let the engine sample from the weights of now, once what is under way has ended."""
        if self._ahead is not None:
            self._ahead.wait()
        engine = self._parts.sampling.engine
        if isinstance(engine, VllmEngine):
            assert engine.served is not None
            if engine.served.version != self._parts.optimizer.updates:
                self._give(engine)
        with nullcontext() if isinstance(engine, VllmEngine) else unsharded(self._parts.policy):
            yield

    def close(self) -> None:
        """Give up what is being sampled."""
        self._closing.set()
        if self._ahead is not None:  # after a fault the other processes may be gone: do not wait
            self._ahead.wait(seconds=5.0)  # for them

    def _version(self) -> int:
        engine = self._parts.sampling.engine
        served = engine.served if isinstance(engine, VllmEngine) else None
        return self._parts.optimizer.updates if served is None else served.version

    def _stops(self) -> bool:
        return self._closing.is_set() or self._should_stop()

    def _collect(self, step: int, first_serial: int) -> StepRollouts:
        config = self.config
        return collect_groups(
            self._sampling,
            config.rollout,
            SamplingSettings(
                max_new_tokens=config.rollout.max_new_tokens,
                temperature=config.rollout.temperature,
                seed=config.training.seed,
                step=step,
            ),
            first_serial=first_serial,
            should_stop=self._stops,
        )

    def _give(self, engine: VllmEngine) -> None:
        """Give the servers the weights of now, and keep those that then say what the policy says.

        Raises:
            EngineError: none does; nothing is sampled from other weights.
        """
        policy, config = self._parts.policy, self.config
        ranks, version = policy.ranks, self._parts.optimizer.updates
        started = time.perf_counter()
        dtype = getattr(torch, engine.dtype)
        weights = served_weights(policy.model, dtype, keep=ranks.first)

        def give() -> Any:
            assert engine.weights is not None
            folder = engine.weights.write(version, weights)
            engine.give(folder, 60 * config.rollout.vllm.start_minutes)
            return engine.probe(config.rollout.temperature, config.training.seed + version)

        probes: dict[str, Probe] = ranks.by_first(give)
        expected = self._logprobs(probes)

        def settle() -> Any:
            return engine.compare(probes, expected), engine.accept(version, probes)

        metrics, served = ranks.by_first(settle)
        engine.follow(served)
        self._given = metrics | {
            "time/weights_s": time.perf_counter() - started,
            "rollout/weights_bytes": sum(t.numel() for t in weights.values()) * dtype.itemsize,
        }

    def _logprobs(self, probes: dict[str, Probe]) -> dict[str, Any]:
        """Server -> what the policy says of its probe; all processes take part."""
        batch = lay_out(
            [torch.tensor(probe.prompt) for probe in probes.values()],
            [torch.tensor(probe.sampled.token_ids) for probe in probes.values()],
            list(range(len(probes))),
        )
        policy = self._parts.policy
        most = self.config.training.micro_batch_tokens
        stats = policy.annotate(batch.to(policy.device), max_tokens=most)
        split = stats.logprobs_R.cpu().split(batch.lengths_B.tolist())
        return {address: part.numpy() for address, part in zip(probes, split, strict=True)}


class _Ahead:
    """The rollouts of the next step, being sampled by another thread."""

    def __init__(self, version: int, collect: Callable[[], StepRollouts]) -> None:
        self.version = version
        self._found: StepRollouts | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=[collect], daemon=True)
        self._thread.start()

    def _run(self, collect: Callable[[], StepRollouts]) -> None:
        try:
            self._found = collect()
        except BaseException as error:  # raised where the result is wanted
            self._error = error

    def wait(self, seconds: float | None = None) -> None:
        self._thread.join(seconds)

    def result(self) -> StepRollouts:
        self.wait()
        if self._error is not None:
            raise self._error
        assert self._found is not None
        return self._found
