"""Sampling held-out problems and counting the right answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from forkpoint.config.stages import EvaluationConfig, RolloutConfig
from forkpoint.errors import RewardError
from forkpoint.evaluation.statistics import bootstrap_interval, wilson_interval
from forkpoint.rewards import Scorer
from forkpoint.runs.results import Estimate
from forkpoint.sampling import Engine, Prompter, SampleRequest
from forkpoint.sampling.base import SamplingSettings
from forkpoint.sampling.collect import StepRollouts
from forkpoint.tasks import Task
from forkpoint.types import Group, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Made by ``evaluate``; eaten by ``training.loop`` and the command line."""

    accuracy: Estimate
    """Share of right answers: a verdict of 1 or more is right, whatever the other rewards say."""
    length_mean: float
    """Tokens per completion."""
    rollouts: StepRollouts
    """Every completion, for the record."""

    def summary(self, model: str) -> dict[str, Any]:
        """For people and files: the accuracy and what it was measured on."""
        return {
            "model": model,
            "accuracy": self.accuracy.model_dump(),
            "samples": len(self.rollouts.accepted[0].rollouts_G),
            "length_mean": self.length_mean,
        }


def evaluate(
    *,
    task: Task,
    prompter: Prompter,
    engine: Engine,
    scorer: Scorer,
    rollout: RolloutConfig,
    config: EvaluationConfig,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Sample ``config.samples`` answers to each of ``config.problems`` held-out problems.

    The draws derive from ``config.seed`` alone: evaluating twice, or two checkpoints of a run,
    uses the same problems and the same random numbers.

    Raises:
        RewardError: no completion at all could be scored.
    """
    problems = task.held_out(config.problems, config.seed)
    prompts = [prompter(problem) for problem in problems]
    requests = [
        SampleRequest(prompt=prompt, serial=serial, sample=sample)
        for serial, prompt in enumerate(prompts)
        for sample in range(config.samples)
    ]
    settings = SamplingSettings(
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        seed=config.seed,
        step=0,
        purpose="evaluate",
    )
    completions = engine.sample(requests, settings, should_stop)
    scores = scorer.score(
        [(r.prompt.problem, c) for r, c in zip(requests, completions, strict=True)], should_stop
    )
    rollouts = [Rollout(completion=c, score=s) for c, s in zip(completions, scores, strict=True)]
    n = config.samples
    groups = tuple(
        Group(prompt=p, serial=i, rollouts_G=tuple(rollouts[i * n : (i + 1) * n]))
        for i, p in enumerate(prompts)
    )
    return Evaluation(
        accuracy=accuracy(groups, seed=config.seed),
        length_mean=sum(len(c.token_ids) for c in completions) / len(completions),
        rollouts=StepRollouts(
            accepted=groups, rejected=(), next_serial=0, rounds=1, sample_s=0.0, score_s=0.0
        ),
    )


def accuracy(groups: tuple[Group, ...], *, seed: int) -> Estimate:
    """Mean over problems of the share of right samples, with a 95 % interval.

    One sample per problem: Wilson's interval. Several: a bootstrap over problems, since samples
    of one problem are not independent. Samples a verifier failed on count as wrong.
    """
    scores = [r.score for g in groups for r in g.rollouts_G]
    if all(s.timed_out or s.verdict is None for s in scores):
        first = next((s.error for s in scores if s.error), "none: the answers are unreadable")
        raise RewardError(f"no completion could be scored; the first verifier error: {first}")
    right_P = [
        sum(is_right(r) for r in group.rollouts_G) / len(group.rollouts_G) for group in groups
    ]
    if all(len(g.rollouts_G) == 1 for g in groups):
        low, high = wilson_interval(int(sum(right_P)), len(groups))
    else:
        low, high = bootstrap_interval(right_P, seed=seed)
    return Estimate(value=float(np.mean(right_P)), low=low, high=high, n=len(groups))


def is_right(rollout: Rollout) -> bool:
    """Whether the verifier gave full marks: 1 or more."""
    verdict = rollout.score.verdict
    return verdict is not None and verdict >= 1.0
