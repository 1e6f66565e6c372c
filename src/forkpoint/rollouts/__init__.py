"""From problems to scored groups of completions."""

from forkpoint.rollouts.base import Engine, SampleRequest
from forkpoint.rollouts.build import build_engine
from forkpoint.rollouts.collect import StepRollouts, collect_groups
from forkpoint.rollouts.prompting import Prompter

__all__ = [
    "Engine",
    "Prompter",
    "SampleRequest",
    "StepRollouts",
    "build_engine",
    "collect_groups",
]
