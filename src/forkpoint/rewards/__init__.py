"""From a completion to its reward, in processes that can be killed."""

from forkpoint.rewards.build import build_scorer
from forkpoint.rewards.scorer import Scorer

__all__ = ["Scorer", "build_scorer"]
