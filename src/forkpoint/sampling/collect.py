"""Dynamic sampling: draw groups until the step has enough that teach something.

A group that the verifier judges alike throughout teaches nothing: DAPO leaves it out (0 < correct <
G) and draws new prompts in its place, so that every step trains on the same number of groups; here
at most ``max_rounds`` times. The verifier's verdicts decide and not the rewards, whose length
penalty or mark for form would let a group of wrong answers through.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forkpoint.advantages import has_zero_variance
from forkpoint.config.stages import RolloutConfig
from forkpoint.sampling.base import SamplingSettings
from forkpoint.sampling.groups import sample_groups
from forkpoint.types import Group

if TYPE_CHECKING:
    from forkpoint.sampling.build import SamplingParts


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
    parts: "SamplingParts",
    config: RolloutConfig,
    settings: SamplingSettings,
    *,
    first_serial: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> StepRollouts:
    """Sample ``prompts_per_step`` groups, then as many again as were rejected, and so on."""
    accepted: list[Group] = []
    rejected: list[Group] = []
    serial, rounds, sample_s, score_s = first_serial, 0, 0.0, 0.0
    while len(accepted) < config.prompts_per_step and rounds < config.max_rounds:
        missing = range(serial, serial + config.prompts_per_step - len(accepted))
        prompts = {number: parts.prompter(parts.task.problem(number)) for number in missing}
        found = sample_groups(
            parts, prompts, settings, samples=config.group_size, should_stop=should_stop
        )
        sample_s, score_s = sample_s + found.sample_s, score_s + found.score_s
        for group in found.groups:
            taught = not config.dynamic_sampling or teaches(group)
            (accepted if taught else rejected).append(group)
        serial, rounds = missing.stop, rounds + 1
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
