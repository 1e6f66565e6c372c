"""The one way from prompts to scored groups: for training, evaluation and every analysis."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forkpoint.sampling.base import SampleRequest, SamplingSettings
from forkpoint.types import Group, Prompt, Rollout

if TYPE_CHECKING:
    from forkpoint.sampling.build import SamplingParts


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroups:
    """What ``sample_groups`` made, and how long it took."""

    groups: tuple[Group, ...]
    """In the order of the prompts."""
    sample_s: float
    score_s: float


def sample_groups(
    parts: "SamplingParts",
    prompts: Mapping[int, Prompt],
    settings: SamplingSettings,
    *,
    samples: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> ScoredGroups:
    """Draw ``samples`` completions of each prompt and let the rewards score them.

    Args:
        prompts: by serial, which names a prompt's random streams and its group.

    Raises:
        Interrupted: ``should_stop()`` turned true; nothing is kept.
        NumericalError: the model gave logits that are not finite.
    """
    started = time.perf_counter()
    requests = [
        SampleRequest(prompt=prompt, serial=serial, sample=sample)
        for serial, prompt in prompts.items()
        for sample in range(samples)
    ]
    completions = parts.engine.sample(requests, settings, should_stop)
    sampled = time.perf_counter()
    pairs = [(r.prompt.problem, c) for r, c in zip(requests, completions, strict=True)]
    scores = parts.scorer.score(pairs, should_stop)
    rollouts = [Rollout(completion=c, score=s) for c, s in zip(completions, scores, strict=True)]
    groups = [
        Group(
            prompt=prompt,
            serial=serial,
            rollouts_G=tuple(rollouts[i * samples : (i + 1) * samples]),
        )
        for i, (serial, prompt) in enumerate(prompts.items())
    ]
    return ScoredGroups(
        groups=tuple(groups),
        sample_s=sampled - started,
        score_s=time.perf_counter() - sampled,
    )
