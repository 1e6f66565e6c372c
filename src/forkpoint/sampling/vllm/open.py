"""From a configuration to servers that have the model's weights."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from forkpoint.config import RunConfig
from forkpoint.errors import ConfigError, EngineError
from forkpoint.policy.load import LoadedModel
from forkpoint.policy.served import served_weights
from forkpoint.policy.teacher import score_completions
from forkpoint.ranks import ALONE, Ranks, local_size
from forkpoint.sampling.vllm.client import Client
from forkpoint.sampling.vllm.engine import Probe, VllmEngine
from forkpoint.sampling.vllm.launch import Launched, prepare, socket_home
from forkpoint.sampling.vllm.weights import Weights, served_dtype
from forkpoint.types import Completion, FinishReason

logger = logging.getLogger(__name__)

MOST_STARTS = 3
"""Of one server in a run, after its first."""


def open_servers(
    loaded: LoadedModel,
    config: RunConfig,
    ranks: Ranks = ALONE,
    should_stop: Callable[[], bool] = lambda: False,
) -> VllmEngine:
    """The engine, with servers that answer and whose weights are those of ``loaded``.

    The first process starts them, or finds those that are named, and gives them weights.

    Raises:
        ConfigError: an address that is none, or servers to be started for several machines.
        EngineError: a server does not start, or none of them ends up with the right weights.
        Interrupted: ``should_stop()`` turned true while they started.
    """
    vllm = config.rollout.vllm
    if not vllm.servers and ranks.size > local_size():
        raise ConfigError(
            "a run on several machines needs rollout.vllm.servers: those that it starts itself "
            "are reached from one machine only"
        )
    with ExitStack() as stack:
        weights = Weights(config, loaded) if ranks.first else None
        launched: list[Launched] = []

        def start() -> tuple[list[str], Path | None]:
            assert weights is not None
            stack.callback(weights.close)
            folder = weights.write(0, served_weights(loaded.model, weights.torch_dtype))
            if vllm.servers:
                return list(vllm.servers), folder
            home = socket_home()
            stack.callback(home.close)
            for index in range(vllm.launch):
                server = prepare(vllm, index, home.path, dtype=weights.dtype)
                launched.append(server)
                stack.callback(server.close)
                server.start(folder)
            for server in launched:
                server.wait(vllm.start_minutes, should_stop)
            return [server.client.address for server in launched], folder

        addresses, folder = ranks.by_first(start)
        engine = VllmEngine(
            [Client(address) for address in addresses],
            tokenizer=loaded.tokenizer,
            eos_ids=loaded.eos_ids,
            vocabulary=loaded.model.get_output_embeddings().weight.shape[0],
            slots=max(1, vllm.concurrency // ranks.size),
            stall_s=vllm.stall_s,
            request_s=60 * vllm.request_minutes,
            dtype=served_dtype(config),
            policy_dtype=config.model.compute_dtype,
        )
        engine.weights = weights
        engine.should_stop = should_stop
        engine.revive = _reviver(launched, vllm.start_minutes, should_stop)

        def settle() -> Any:
            assert folder is not None
            engine.give(folder, 60 * vllm.start_minutes)
            probes = engine.probe(config.rollout.temperature, config.training.seed)
            engine.compare(probes, plain_logprobs(loaded.model, probes, config))
            return engine.accept(0, probes)

        engine.follow(ranks.by_first(settle))
        engine.on_close = stack.pop_all().close
    return engine


def plain_logprobs(
    model: Any, probes: Mapping[str, Probe], config: RunConfig
) -> dict[str, np.ndarray]:
    """Server -> what a model on one process says of its probe."""
    pairs = [(probe.prompt, as_completion(probe)) for probe in probes.values()]
    temperature, most = config.rollout.temperature, config.training.micro_batch_tokens
    scored = score_completions(model, pairs, temperature=temperature, top_k=1, max_tokens=most)
    return {address: c.logprobs for address, c in zip(probes, scored, strict=True)}


def as_completion(probe: Probe) -> Completion:
    """A probe as a completion without a text."""
    ids, logprobs = probe.sampled
    return Completion(
        token_ids=np.array(ids),
        logprobs=np.array(logprobs),
        entropies=None,
        finish_reason=FinishReason.UNKNOWN,
        text="",
    )


def _reviver(
    launched: Sequence[Launched], minutes: float, should_stop: Callable[[], bool]
) -> Callable[[Path], None]:
    """What starts anew those servers of the run that do not answer, a few times each."""
    starts = [0] * len(launched)

    def revive(folder: Path) -> None:
        for index, server in enumerate(launched):
            works = server.runs and server.client.ready()
            if not works and starts[index] < MOST_STARTS:
                starts[index] += 1
                server.start(folder)
                try:
                    server.wait(minutes, should_stop)
                except EngineError as error:  # the others go on without it
                    logger.warning("%s", error)

    return revive
