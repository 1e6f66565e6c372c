"""What a run is made of, built from its configuration."""

from dataclasses import dataclass
from pathlib import Path

from forkpoint.config import RunConfig
from forkpoint.policy import LoadedModel, PolicyModule, load_model
from forkpoint.policy.load import check_head
from forkpoint.rewards import Scorer, build_scorer
from forkpoint.rollouts import Engine, Prompter, build_engine
from forkpoint.tasks import Task, build_task
from forkpoint.training.optimizer import Optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParts:
    loaded: LoadedModel
    policy: PolicyModule
    optimizer: Optimizer
    reference: PolicyModule | None
    """The model the run started from, frozen; only with a KL penalty."""
    task: Task
    prompter: Prompter
    engine: Engine
    scorer: Scorer

    def close(self) -> None:
        """End the engine and the verifiers' processes."""
        self.engine.close()
        self.scorer.close()


def build_parts(config: RunConfig, *, weights: Path | None = None) -> RunParts:
    """Load the model, open the task, start what must be started.

    Args:
        weights: a checkpoint to take the policy's weights from.

    Raises:
        ModelError, DataError, ConfigError, RewardError: before anything expensive has begun.
    """
    task = build_task(config.task)
    loaded = load_model(config.model, weights=weights)
    if config.training.gradient == "sparse":
        check_head(loaded.model)
    reference = None
    if config.loss.kl_coefficient:
        frozen = load_model(config.model).model.requires_grad_(False)
        reference = _policy(frozen, config)
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    return RunParts(
        loaded=loaded,
        policy=_policy(loaded.model, config),
        optimizer=Optimizer(loaded.model, config.optim),
        reference=reference,
        task=task,
        prompter=Prompter(loaded.tokenizer, max_positions=positions),
        engine=build_engine(loaded, config.rollout),
        scorer=build_scorer(config, task),
    )


def _policy(model: object, config: RunConfig) -> PolicyModule:
    return PolicyModule(
        model,  # pyright: ignore[reportArgumentType]
        gradient=config.training.gradient,
        temperature=config.rollout.temperature,
    )
