"""Bytes that each process sends in a step, on average.

With the numbers of memory.py, F passes with gradient and E without on each process, U updates and T
tokens of the step; s = (N - 1) / N:

    weights     (2 F + E) b P s       gathered for the forward pass, once more for the backward one
    gradients   4 P_t s F             scattered after each pass, float32; gloo sends them twice
    records     16 T s                ids and three numbers of each token it sampled, to all
    numbers     24 T s a pass over all tokens without gradient: the same three
    engine      4 P s                 weights to the first process, which writes b P for servers,
                                      and b V D for a head that is tied

The selection sends nothing: every process has the whole step, and makes the same one.
"""

import math
from dataclasses import dataclass

import torch

from forkpoint.config import RunConfig
from forkpoint.plan.memory import pass_tokens
from forkpoint.plan.sizes import Sizes
from forkpoint.plan.step import StepTokens
from forkpoint.plan.work import passes_without_gradient

RECORD_BYTES = 16
"""Of a sampled token: id, log-probability, entropy, energy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes that one process sends in a step."""

    weights: float
    gradients: float
    records: float
    numbers: float
    engine: float
    """To the first process; and ``written`` by it."""
    written: float

    @property
    def between(self) -> float:
        """Between processes, all in all."""
        return self.weights + self.gradients + self.records + self.numbers + self.engine


def traffic(
    config: RunConfig,
    sizes: Sizes,
    step: StepTokens,
    processes: int,
    passes: tuple[int, int] | None = None,
    *,
    backend: str = "nccl",
) -> Traffic:
    """
    Args:
        passes: with and without gradient on each process, where they are known.
        backend: ``nccl``, or ``gloo``, which scatters sums by adding them up everywhere.
    """
    compute = getattr(torch, config.model.compute_dtype).itemsize
    share = (processes - 1) / processes
    served = config.rollout.engine == "vllm"
    own_head = sizes.vocabulary * sizes.width if sizes.tied else 0
    learning, reading = passes or _passes(config, step, processes)
    weights = (2 * learning + reading) * compute * sizes.parameters
    if config.rollout.engine == "transformers":  # all weights at once, for sampling
        weights += compute * sizes.parameters
    return Traffic(
        weights=weights * share,
        gradients=4 * sizes.trained * share * learning * (2 if backend == "gloo" else 1),
        records=RECORD_BYTES * step.sampled / processes * (processes - 1),
        numbers=24 * step.completion_tokens * share * passes_without_gradient(config),
        engine=4 * sizes.parameters * share if served else 0.0,
        written=float(compute * (sizes.parameters + own_head)) if served else 0.0,
    )


def _passes(config: RunConfig, step: StepTokens, processes: int) -> tuple[int, int]:
    """Passes with and without gradient on each process: every mini-batch makes at least one."""
    updates = config.training.mini_batches
    each = max(step.tokens / updates / pass_tokens(config, step), 1.0)
    learning = updates * math.ceil(each / processes)
    whole = math.ceil(step.tokens / pass_tokens(config, step) / processes)
    by_update = config.selection.entropy == "current"
    reading = (passes_without_gradient(config) - by_update) * whole + by_update * learning
    return learning, reading or 1  # a sequence that says whether the sampler's numbers are right
