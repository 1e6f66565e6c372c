"""What a run is made of: the model, what samples from it, what trains it."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from forkpoint.config import RunConfig
from forkpoint.policy import PolicyModule, load_model
from forkpoint.policy.live import LiveSet
from forkpoint.policy.load import device_of
from forkpoint.policy.precision import compute_in
from forkpoint.ranks import ALONE, Ranks
from forkpoint.sampling import SamplingParts, build_sampling
from forkpoint.sampling.build import check_engine
from forkpoint.sampling.key_keeper import KeyKeeper
from forkpoint.sampling.transformers import TransformersEngine
from forkpoint.selection.rules import check_rules
from forkpoint.training.optimizer import Optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParts:
    """What a run is made of. Made by ``build_parts``."""

    sampling: SamplingParts
    policy: PolicyModule
    optimizer: Optimizer
    reference: PolicyModule | None
    """The model the run started from, frozen; only with a KL penalty."""


def build_parts(
    config: RunConfig,
    *,
    weights: Path | None = None,
    ranks: Ranks = ALONE,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunParts:
    """Sampling, and beside it what trains.

    Args:
        weights: a checkpoint to take the policy's weights from.

    Raises:
        ModelError, DataError, ConfigError, RewardError: before anything expensive has begun.
    """
    check_rules(config)
    with ExitStack() as stack:
        loaded = load_model(config.model, weights=weights, trained=True)
        sampling = build_sampling(config, loaded, ranks, should_stop)
        stack.callback(sampling.close)  # unless all goes well
        check_engine(sampling.engine, config)
        check_problems(sampling, config, trained=weights is None)
        gradient, reference = config.training.gradient, None
        if config.loss.kl_coefficient:
            frozen = load_model(config.model).model.requires_grad_(False)
            # Only its values are wanted: there are no keys to keep.
            kind = "sparse" if gradient == "local" else gradient
            reference = _policy(frozen, config, kind, ranks)
        policy = _policy(loaded.model, config, gradient, ranks)
        dtype = getattr(torch, config.model.compute_dtype)
        compute_in(policy, dtype, device_of(config.model.device))
        if policy.keys is not None and isinstance(sampling.engine, TransformersEngine):
            sampling.engine.keeper = KeyKeeper(policy.keys, config.rollout.group_size)
        parts = RunParts(
            sampling=sampling,
            policy=policy,
            optimizer=Optimizer(loaded.model, config.optim),
            reference=reference,
        )
        stack.pop_all()
    return parts


def check_problems(parts: SamplingParts, config: RunConfig, *, trained: bool = True) -> None:
    """Find prompts that the model cannot read, and held-out problems that are not there, before
    steps are made.

    Args:
        trained: look at those of the training data, too, as many as the run may ask for.

    Raises:
        DataError, ModelError: naming the problem.
    """
    task, rollout = parts.task, config.rollout
    if config.evaluation.every:
        for problem in task.held_out(config.evaluation.problems, config.evaluation.seed):
            parts.prompter(problem)
    if trained and task.count is not None:
        asked = config.training.steps * rollout.prompts_per_step * rollout.max_rounds
        for serial in range(min(task.count, asked)):
            parts.prompter(task.problem(serial))


def _policy(model: Any, config: RunConfig, gradient: str, ranks: Ranks) -> PolicyModule:
    training = config.training
    live = LiveSet(
        kind=training.live,
        fraction=training.live_fraction,
        first_hop=training.first_hop,
        keys_gb=training.keys_gb,
        stale_keys=training.stale_keys,
    )
    return PolicyModule(
        model,
        gradient=gradient,
        temperature=config.rollout.temperature,
        rows=training.rows,
        row_tokens=training.micro_batch_tokens,
        live=live,
        ranks=ranks,
    )
