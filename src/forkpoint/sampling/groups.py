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

    With several processes each does some of the prompts, and all get all groups.

    Args:
        prompts: by serial, which names a prompt's random streams and its group.

    Raises:
        Interrupted: ``should_stop()`` turned true; nothing is kept.
        NumericalError: the model gave logits that are not finite.
    """
    ranks = parts.ranks
    serials = list(prompts)
    mine = serials[ranks.rank :: ranks.size]

    def work() -> tuple[list[tuple[Rollout, ...]], float, float]:
        started = time.perf_counter()
        requests = [
            SampleRequest(prompt=prompts[serial], serial=serial, sample=sample)
            for serial in mine
            for sample in range(samples)
        ]
        completions = parts.engine.sample(requests, settings, should_stop) if requests else []
        sampled = time.perf_counter()
        pairs = [(r.prompt.problem, c) for r, c in zip(requests, completions, strict=True)]
        scores = parts.scorer.score(pairs, should_stop) if pairs else []
        found = [Rollout(completion=c, score=s) for c, s in zip(completions, scores, strict=True)]
        groups = [tuple(found[i : i + samples]) for i in range(0, len(found), samples)]
        return groups, sampled - started, time.perf_counter() - sampled

    done = ranks.agree(work)
    rollouts = {
        serial: group
        for rank, (groups, _, _) in enumerate(done)
        for serial, group in zip(serials[rank :: ranks.size], groups, strict=True)
    }
    return ScoredGroups(
        groups=tuple(
            Group(prompt=prompt, serial=serial, rollouts_G=rollouts[serial])
            for serial, prompt in prompts.items()
        ),
        sample_s=max(sample_s for _, sample_s, _ in done),
        score_s=max(score_s for _, _, score_s in done),
    )
