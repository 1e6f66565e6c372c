"""The tokens of a step, and what is assumed where a recipe cannot say."""

from dataclasses import dataclass

from forkpoint.config import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What only a run shows. The plan prints it beside its numbers."""

    prompt: int = 200
    """Tokens of a prompt."""
    length: int | None = None
    """Tokens of a completion on average; None: a third of ``rollout.max_new_tokens``."""
    flat: float = 0.5
    """The share of sampled groups that dynamic sampling leaves out."""
    utilisation: float = 0.4
    """Of a GPU's peak rate, what training reaches."""
    sampling_utilisation: float = 0.1
    """Of the same, what sampling reaches: it is bound by memory."""
    live_share: float | None = None
    """Positions that ``local`` runs with gradient; None: ``selection.keep_fraction``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTokens:
    """A step's numbers of tokens, over all processes."""

    sequences: int
    """That are trained on."""
    prompt: int
    length: int
    """Of each, on average."""
    sampled: int
    """Completions' tokens, those of groups that are left out as well."""
    longest: int
    """Tokens of the longest sequence that may come, prompt and completion."""

    @property
    def completion_tokens(self) -> int:
        """That are trained on."""
        return self.sequences * self.length

    @property
    def tokens(self) -> int:
        """That are trained on, prompts included."""
        return self.sequences * (self.prompt + self.length)


def step_tokens(config: RunConfig, assumed: Assumed) -> StepTokens:
    """
    A step trains on ``prompts_per_step`` groups of ``group_size``, and samples 1 / (1 - flat) times
    as many with dynamic sampling, at most ``max_rounds`` rounds of them.
    """
    rollout = config.rollout
    length = assumed.length or max(1, rollout.max_new_tokens // 3)
    sequences = rollout.prompts_per_step * rollout.group_size
    rounds = min(rollout.max_rounds, 1 / (1 - assumed.flat)) if rollout.dynamic_sampling else 1
    return StepTokens(
        sequences=sequences,
        prompt=assumed.prompt,
        length=length,
        sampled=round(sequences * rounds) * length,
        longest=assumed.prompt + rollout.max_new_tokens,
    )
