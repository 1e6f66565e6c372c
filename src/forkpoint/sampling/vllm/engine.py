"""Samples by vLLM servers that share the prompts, and knows which weights each of them has.

The processes of a run all ask all servers; the first one gives them weights. A server that does not
answer, stands still, or turns out to have other weights is given up until weights are given
next: it is named in a warning, and its prompts go to the others.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from forkpoint.errors import EngineError, Interrupted
from forkpoint.policy.checks import SAME_NUMBERS_NATS
from forkpoint.randomness import stream
from forkpoint.sampling.base import SampleRequest, SamplingSettings
from forkpoint.sampling.vllm.client import SHORT_S, Client, Draw, Sampled, ServerFault
from forkpoint.sampling.vllm.job import Job
from forkpoint.sampling.vllm.weights import Weights
from forkpoint.types import Completion, FinishReason

logger = logging.getLogger(__name__)

PROBE_TOKENS = 32
"""Of the completion by which a server's weights are compared with the trainer's."""
SAME_SERVER_NATS = {"float32": 1e-3, "bfloat16": 0.05}
"""What a server computes in -> how far its log-probabilities of the same tokens may be apart on
average before and after a step: what else is in its batch changes their rounding."""
POLL_S = 0.1
WATCH_S = 5.0
"""How often a server at work is asked for its progress, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A completion by which a server shows its weights."""

    prompt: tuple[int, ...]
    sampled: Sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What the servers have, as all processes of a run know it."""

    version: int
    """Updates made to the policy before these weights."""
    marks: dict[str, tuple[tuple[int, ...], list[float]]] = field(default_factory=dict)
    """Server -> some token ids and what it said of them when its weights were known to be right."""


class VllmEngine:
    """See ``sampling.base.Engine``; and ``training.weights`` for who gives the weights."""

    captures_entropy = False
    same_weights = False
    splits_temperatures = False

    def __init__(
        self,
        clients: Sequence[Client],
        *,
        tokenizer: Any,
        eos_ids: tuple[int, ...],
        vocabulary: int,
        slots: int,
        stall_s: float,
        request_s: float,
        dtype: str,
        policy_dtype: str,
    ) -> None:
        """
        Args:
            slots: completions asked of one server at a time by this process.
            stall_s: a server at work that makes no token for so long is given up.
            request_s: so is one that has not answered a request after so long.
            dtype: what the servers compute in.
            policy_dtype: what the trainer computes in.
        """
        self.clients = {client.address: client for client in clients}
        self.served: Served | None = None
        self.dtype = dtype
        self._coarser = max(dtype, policy_dtype, key=lambda name: SAME_NUMBERS_NATS[name])
        self._tokenizer, self._eos_ids, self._vocabulary = tokenizer, eos_ids, vocabulary
        self._slots, self._stall_s, self._request_s = slots, stall_s, request_s
        self._lost: dict[str, str] = {}
        self._redrawn = 0
        self._closing = threading.Event()
        self.on_close: Callable[[], None] = lambda: None
        self.should_stop: Callable[[], bool] = lambda: False
        self.weights: Weights | None = None
        """Where new weights are written; in the first process alone."""
        self.revive: Callable[[Path], None] = lambda folder: None
        """Starts those of the run's servers anew that do not answer, from weights in a folder."""

    # ---- weights --------------------------------------------------------------------------------

    def give(self, folder: Path, timeout_s: float) -> None:
        """Let every server load the weights in a folder; those that were given up, too.

        Raises:
            EngineError: no server has loaded them.
            Interrupted: ``should_stop()`` turned true.
        """
        self._lost.clear()
        self.revive(folder)

        def load(client: Client) -> None:
            try:
                if not client.ready():
                    raise ServerFault("no answer to /health")
                client.progress(SHORT_S)
                client.load(folder, timeout_s)
            except ServerFault as fault:
                self.lose(client, str(fault))

        with ThreadPoolExecutor(len(self.clients)) as pool:
            loading = [pool.submit(load, client) for client in self.clients.values()]
            while wait(loading, timeout=POLL_S).not_done:
                if self.should_stop() or self._closing.is_set():
                    for client in self.clients.values():
                        client.cancel()
        if self.should_stop():
            raise Interrupted("stopped while servers loaded weights")
        for done in loading:
            done.result()
        self.alive()

    def probe(self, temperature: float, seed: int) -> dict[str, Probe]:
        """Server -> a completion after some made-up tokens, to compare with the trainer's numbers.

        Raises:
            EngineError: no server answers.
        """
        step = max(1, self._vocabulary // 16)
        prompt = tuple(range(0, self._vocabulary, step))[:16]
        draw = Draw(
            max_tokens=PROBE_TOKENS,
            temperature=temperature,
            seed=seed,
            eos_ids=(),  # it goes on: one token would show little
            vocabulary=self._vocabulary,
        )
        probes = {}
        for client in self.alive():
            try:
                sampled = client.complete(prompt, draw, timeout=self._stall_s)
                probes[client.address] = Probe(prompt=prompt, sampled=sampled)
            except ServerFault as fault:
                self.lose(client, str(fault))
        self.alive()
        return probes

    def compare(
        self, probes: dict[str, Probe], expected: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """Give up every server whose numbers for its probe are not the trainer's.

        Args:
            expected: server -> the trainer's ln p of the probe's tokens.

        Returns:
            The mean and the largest difference over the servers that stay, as metrics.

        Raises:
            EngineError: none stays.
        """
        gaps = {
            address: np.abs(expected[address] - np.asarray(probe.sampled.logprobs))
            for address, probe in probes.items()
        }
        most_mean, most = SAME_NUMBERS_NATS[self._coarser]
        for address, gap_T in gaps.items():
            if not (gap_T.mean() <= most_mean and gap_T.max() <= most):
                self.lose(
                    self.clients[address],
                    f"its log-probabilities are {gap_T.mean():.2g} nats from the trainer's on "
                    f"average, {gap_T.max():.2g} at most: it has other weights, computes in "
                    "another type, or was not started with --logprobs-mode processed_logprobs",
                )
        kept = np.concatenate([gaps[client.address] for client in self.alive()])
        return {
            "mismatch/probe_mean_nats": float(kept.mean()),
            "mismatch/probe_max_nats": float(kept.max()),
        }

    def accept(self, version: int, probes: dict[str, Probe]) -> Served:
        """What the servers that are still there have from now on.

        Raises:
            EngineError: none is left.
        """
        marks = {}
        for client in self.alive():
            probe = probes[client.address]
            ids = (*probe.prompt, *probe.sampled.token_ids)
            try:
                marks[client.address] = ids, client.read(ids)
            except ServerFault as fault:
                self.lose(client, str(fault))
        self.alive()
        return Served(version=version, marks=marks)

    def follow(self, served: Served) -> None:
        """Sample from what the first process knows the servers to have."""
        self.served = served
        for client in self.clients.values():
            if client.address in served.marks:
                self._lost.pop(client.address, None)
            else:
                self._lost.setdefault(client.address, "its weights are not known")

    def lose(self, client: Client, why: str) -> None:
        """Give a server up until weights are given next."""
        if client.address not in self._lost:
            self._lost[client.address] = why
            logger.warning("%r is given up: %s", client, why)
        client.cancel()

    def alive(self) -> list[Client]:
        """The servers that are not given up.

        Raises:
            EngineError: there is none; with what is wrong with each.
        """
        alive = [c for c in self.clients.values() if c.address not in self._lost]
        if not alive:
            faults = "; ".join(f"{address}: {why}" for address, why in self._lost.items())
            raise EngineError(f"no vLLM server is left to sample from ({faults})")
        return alive

    def take_redrawn(self) -> int:
        """Completions that were asked of one server and had to be drawn once more since the last
        call."""
        redrawn, self._redrawn = self._redrawn, 0
        return redrawn

    # ---- sampling -------------------------------------------------------------------------------

    def sample(
        self,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        """See ``Engine.sample``. A draw is seeded by what it is for; that of one server differs
        from another's by rounding.

        Raises:
            EngineError: no server is left, or a request is refused.
        """
        assert self.served is not None, "no weights were given"
        job = Job(len(requests))

        def draw(client: Client, index: int) -> Completion:
            return self._draw(client, requests[index], settings)

        while job.missing:
            clients = self.alive()
            self._work(job, clients, draw, should_stop)
            for client in clients:
                if job.made_by(client) and (fault := self._changed(client)):
                    job.drop(client)
                    self.lose(client, fault)
        self._redrawn += job.redrawn
        version = self.served.version
        return [replace(c, weights_version=version) for c in job.completions()]

    def close(self) -> None:
        """End the servers that were started; break off what is being sampled."""
        self._closing.set()
        for client in self.clients.values():
            client.cancel()
        self.on_close()

    def _work(
        self,
        job: Job,
        clients: Sequence[Client],
        draw: Callable[[Client, int], Completion],
        should_stop: Callable[[], bool],
    ) -> None:
        """Let servers draw what is missing, until nothing is or none of them works any more."""
        over = threading.Event()

        def slot(client: Client) -> None:
            while not over.is_set() and client.address not in self._lost:
                index = job.take(client)
                if index is None:
                    return
                try:
                    job.put(index, client, draw(client, index))
                except ServerFault as fault:
                    job.give_back(index, client)
                    if not over.is_set():
                        self.lose(client, str(fault))
                except Exception as error:  # raised below, where it is seen
                    job.error = error
                    return

        def watch(client: Client) -> None:
            last, since = -1.0, time.monotonic()
            while not over.wait(min(WATCH_S, self._stall_s / 4)):
                with suppress(ServerFault, EngineError):  # no answer is no progress
                    now = client.progress(self._stall_s)
                    if over.is_set():
                        return  # whatever it does now, it is for another call
                    if now != last or not job.under_way[client.address]:
                        last, since = now, time.monotonic()
                stalls = time.monotonic() - since > self._stall_s
                if stalls and not over.is_set() and client.address not in self._lost:
                    self.lose(client, f"it has made no token for {self._stall_s:g} s")

        def go_on() -> None:
            if should_stop() or self._closing.is_set():
                raise Interrupted("stopped while sampling")

        go_on()  # before anything is asked for: a quick server would be done first
        slots = min(self._slots, -(-job.missing // len(clients)))
        workers = [_started(slot, client) for client in clients for _ in range(slots)]
        for client in clients:
            _started(watch, client)
        try:
            while any(worker.is_alive() for worker in workers) and job.error is None:
                go_on()
                workers[0].join(POLL_S) if workers[0].is_alive() else time.sleep(POLL_S)
        finally:
            over.set()
            while any(worker.is_alive() for worker in workers):  # one may just have begun to ask
                for client in clients:
                    client.cancel()
                time.sleep(POLL_S)
        if job.error is not None:
            raise job.error

    def _draw(
        self, client: Client, request: SampleRequest, settings: SamplingSettings
    ) -> Completion:
        name = (settings.seed, settings.purpose, settings.step, request.serial, request.sample)
        draw = Draw(
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=int(stream(*name).integers(2**62)),
            eos_ids=self._eos_ids,
            vocabulary=self._vocabulary,
        )
        ids, logprobs = client.complete(request.prompt.token_ids, draw, timeout=self._request_s)
        return Completion(
            token_ids=np.array(ids),
            logprobs=np.array(logprobs),
            entropies=None,
            finish_reason=(FinishReason.STOP if ids[-1] in self._eos_ids else FinishReason.LENGTH),
            text=self._tokenizer.decode(ids, skip_special_tokens=True),
        )

    def _changed(self, client: Client) -> str | None:
        """Why a server is not the one that was given weights, or None."""
        assert self.served is not None
        ids, before = self.served.marks[client.address]
        try:
            gaps = [abs(a - b) for a, b in zip(client.read(ids), before, strict=True)]
        except ServerFault as fault:
            return str(fault)
        gap = sum(gaps) / len(gaps)
        if gap <= SAME_SERVER_NATS[self.dtype]:
            return None
        return (
            f"it has other weights than it was given ({gap:.2g} nats off): was it started anew? "
            "What it made in this step is drawn again"
        )


def _started(target: Callable[[Client], None], client: Client) -> threading.Thread:
    thread = threading.Thread(target=target, args=[client], daemon=True)
    thread.start()
    return thread
