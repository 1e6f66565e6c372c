"""Dynamic sampling: draw groups until the step has enough that teach something.

A group that the verifier judges alike throughout teaches nothing: DAPO leaves it out (0 < correct <
G) and draws new prompts in its place, so that every step trains on the same number of groups; here
at most ``max_rounds`` times. The verifier's verdicts decide and not the rewards, whose length
penalty or mark for form would let a group of wrong answers through.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forkpoint.advantages import has_zero_variance
from forkpoint.config.stages import RolloutConfig
from forkpoint.rewards import Scorer
from forkpoint.sampling.base import Engine, SampleRequest, SamplingSettings
from forkpoint.sampling.prompting import Prompter
from forkpoint.tasks import Task
from forkpoint.types import Group, Prompt, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRollouts:
    """All that was sampled for one step."""

    accepted: tuple[Group, ...]
    """To be trained on."""
    rejected: tuple[Group, ...]
    """All answers were judged alike; kept for the record."""
    next_serial: int
    """The first prompt of the stream that was not used."""
    rounds: int
    sample_s: float
    score_s: float

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups in the order of the prompt stream."""
        return tuple(sorted((*self.accepted, *self.rejected), key=lambda g: g.serial))


def collect_groups(
    *,
    task: Task,
    prompter: Prompter,
    engine: Engine,
    scorer: Scorer,
    config: RolloutConfig,
    settings: SamplingSettings,
    first_serial: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> StepRollouts:
    """Sample ``prompts_per_step`` groups, then as many again as were rejected, and so on."""
    accepted: list[Group] = []
    rejected: list[Group] = []
    serial, rounds, sample_s, score_s = first_serial, 0, 0.0, 0.0
    while len(accepted) < config.prompts_per_step and rounds < config.max_rounds:
        missing = config.prompts_per_step - len(accepted)
        prompts = [prompter(task.problem(n)) for n in range(serial, serial + missing)]
        started = time.perf_counter()
        requests = [
            SampleRequest(prompt=prompt, serial=serial + i, sample=sample)
            for i, prompt in enumerate(prompts)
            for sample in range(config.group_size)
        ]
        completions = engine.sample(requests, settings, should_stop)
        sampled = time.perf_counter()
        pairs = [(r.prompt.problem, c) for r, c in zip(requests, completions, strict=True)]
        scores = scorer.score(pairs, should_stop)
        sample_s, score_s = sample_s + sampled - started, score_s + time.perf_counter() - sampled
        rollouts = [
            Rollout(completion=c, score=s) for c, s in zip(completions, scores, strict=True)
        ]
        for group in _groups(prompts, rollouts, serial, config.group_size):
            keep = not config.dynamic_sampling or teaches(group)
            (accepted if keep else rejected).append(group)
        serial, rounds = serial + missing, rounds + 1
    return StepRollouts(
        accepted=tuple(accepted),
        rejected=tuple(rejected),
        next_serial=serial,
        rounds=rounds,
        sample_s=sample_s,
        score_s=score_s,
    )


def teaches(group: Group) -> bool:
    """Whether the verifier judged some sample of the group better than another.

    Verdicts are equal as rewards are (``advantages.EQUAL_REWARDS``): for verdicts of 0 and 1 this
    is 0 < right < G. Samples without a reward are not trained on and do not count.
    """
    scores = [r.score for r in group.rollouts_G if r.score.reward is not None]
    return not has_zero_variance([s.verdict for s in scores if s.verdict is not None])


def _groups(
    prompts: Sequence[Prompt], rollouts: Sequence[Rollout], serial: int, size: int
) -> list[Group]:
    return [
        Group(
            prompt=prompt, serial=serial + i, rollouts_G=tuple(rollouts[i * size : (i + 1) * size])
        )
        for i, prompt in enumerate(prompts)
    ]
