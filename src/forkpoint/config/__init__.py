"""What a run is: frozen models that import neither torch nor transformers."""

from forkpoint.config.load import load_config, parse_config
from forkpoint.config.run import RunConfig

__all__ = ["RunConfig", "load_config", "parse_config"]
