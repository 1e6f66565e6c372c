"""From ``rollout.engine`` to an engine."""

from forkpoint.config.stages import RolloutConfig
from forkpoint.dotted import resolve
from forkpoint.policy.load import LoadedModel
from forkpoint.rollouts.base import Engine
from forkpoint.rollouts.transformers import TransformersEngine


def build_engine(loaded: LoadedModel, config: RolloutConfig) -> Engine:
    """The engine a recipe names, drawing from ``loaded``."""
    if config.engine == "transformers":
        return TransformersEngine(loaded, batch_sequences=config.batch_sequences)
    return resolve(config.engine, key="rollout.engine")(loaded, config)
