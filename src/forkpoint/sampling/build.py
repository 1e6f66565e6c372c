"""From a configuration to all that sampling needs."""

from collections.abc import Callable
from dataclasses import dataclass

from forkpoint.config import RunConfig
from forkpoint.dotted import call_users, resolve
from forkpoint.errors import ConfigError
from forkpoint.policy.body import check_length, context_length
from forkpoint.policy.load import LoadedModel, load_model
from forkpoint.ranks import ALONE, Ranks
from forkpoint.rewards import Scorer, build_scorer
from forkpoint.sampling.base import Engine
from forkpoint.sampling.prompting import Prompter
from forkpoint.sampling.rows import settle_decoding
from forkpoint.sampling.transformers import TransformersEngine
from forkpoint.sampling.users_engine import UsersEngine
from forkpoint.sampling.vllm.open import open_servers
from forkpoint.tasks import Task, build_task


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParts:
    """What draws and scores completions, in training and in evaluation alike."""

    loaded: LoadedModel
    task: Task
    prompter: Prompter
    engine: Engine
    scorer: Scorer
    ranks: Ranks = ALONE

    def close(self) -> None:
        """End the engine and the verifiers' processes."""
        self.engine.close()
        self.scorer.close()


def build_sampling(
    config: RunConfig,
    loaded: LoadedModel | None = None,
    ranks: Ranks = ALONE,
    should_stop: Callable[[], bool] = lambda: False,
) -> SamplingParts:
    """What samples and scores: the task is opened, processes are started.

    Args:
        loaded: the model to sample from, such as the one that is trained; None loads
            ``config.model``.
        ranks: the processes that share the prompts.

    Raises:
        ModelError, DataError, ConfigError, RewardError: before anything expensive has begun.
    """
    task = build_task(config.task)
    loaded = loaded or load_model(config.model)
    return SamplingParts(
        loaded=loaded,
        task=task,
        prompter=Prompter(
            loaded.tokenizer,
            max_positions=context_length(loaded.model),
            max_new_tokens=config.rollout.max_new_tokens,
        ),
        engine=build_engine(loaded, config, ranks, should_stop),
        scorer=build_scorer(config, task),
        ranks=ranks,
    )


def check_engine(engine: Engine, config: RunConfig, *, splits_temperatures: bool = False) -> None:
    """Refuse an engine that cannot do what is asked of it, before anything is sampled.

    Args:
        config: of a run that trains.
        splits_temperatures: two decoding temperatures will be asked for, which go by the engine's
            entropies.

    Raises:
        ConfigError: naming the engine and what to write instead.
    """
    name = config.rollout.engine
    if config.selection.entropy == "rollout" and not engine.captures_entropy:
        raise ConfigError(
            f"selection.entropy = 'rollout', but rollout.engine = {name!r} does not capture "
            "entropies: write selection.entropy = 'old' (or 'auto')"
        )
    if config.rollout.lag and engine.same_weights:
        raise ConfigError(
            f"rollout.lag = 1 samples while the model is trained, and rollout.engine = {name!r} "
            "samples from the very model: use rollout.engine = 'vllm', or lag = 0"
        )
    if splits_temperatures and not (engine.captures_entropy and engine.splits_temperatures):
        raise ConfigError(
            f"rollout.engine = {name!r} cannot decode forks and the rest at different "
            "temperatures: write rollout.engine = 'transformers'"
        )


def build_engine(
    loaded: LoadedModel,
    config: RunConfig,
    ranks: Ranks = ALONE,
    should_stop: Callable[[], bool] = lambda: False,
) -> Engine:
    """The engine a recipe names, drawing from ``loaded``.

    Raises:
        ModelError: the in-process engine would sample this model wrong.
        EngineError: a vLLM server does not start, or does not have the model's weights.
    """
    rollout = config.rollout
    check_length(loaded.model, 1 + rollout.max_new_tokens)
    if rollout.engine == "transformers":
        return TransformersEngine(
            loaded,
            decoding=settle_decoding(loaded.model),
            batch_sequences=rollout.batch_sequences,
            cache_gb=rollout.cache_gb,
        )
    if rollout.engine == "vllm":
        return open_servers(loaded, config, ranks, should_stop)
    setting = f"rollout.engine = {rollout.engine!r}"
    factory = resolve(rollout.engine, key="rollout.engine")
    engine = call_users(factory, loaded, rollout, setting=setting)
    vocabulary = loaded.model.get_input_embeddings().weight.shape[0]
    return UsersEngine(engine, setting, vocabulary)
