"""From problems to scored groups of completions."""

from forkpoint.sampling.base import Engine, SampleRequest
from forkpoint.sampling.build import SamplingParts, build_engine, build_sampling
from forkpoint.sampling.collect import StepRollouts, collect_groups
from forkpoint.sampling.groups import ScoredGroups, sample_groups
from forkpoint.sampling.prompting import Prompter
from forkpoint.sampling.record import RowMaker

__all__ = [
    "Engine",
    "Prompter",
    "RowMaker",
    "SampleRequest",
    "SamplingParts",
    "ScoredGroups",
    "StepRollouts",
    "build_engine",
    "build_sampling",
    "collect_groups",
    "sample_groups",
]
