"""From problems to scored groups of completions."""

from forkpoint.rollouts.base import Engine, SampleRequest
from forkpoint.rollouts.build import SamplingParts, build_engine, build_sampling
from forkpoint.rollouts.collect import StepRollouts, collect_groups
from forkpoint.rollouts.prompting import Prompter
from forkpoint.rollouts.record import RowMaker

__all__ = [
    "Engine",
    "Prompter",
    "RowMaker",
    "SampleRequest",
    "SamplingParts",
    "StepRollouts",
    "build_engine",
    "build_sampling",
    "collect_groups",
]
