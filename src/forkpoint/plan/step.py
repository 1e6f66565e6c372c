"""The tokens of a step, and what is assumed where a recipe cannot say."""

from dataclasses import dataclass

from forkpoint.config import RunConfig
from forkpoint.errors import ConfigError


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
    A step wants n groups of ``group_size``. With dynamic sampling each of R rounds
    (``max_rounds``) samples what is still missing, of which a share f comes out flat: n (1 - f^R)
    are trained on, n (1 - f^R) / (1 - f) sampled.

    Raises:
        ConfigError: completions longer than they may be.
    """
    rollout = config.rollout
    if assumed.length is not None and assumed.length > rollout.max_new_tokens:
        raise ConfigError(
            f"completions of {assumed.length} tokens, but rollout.max_new_tokens is "
            f"{rollout.max_new_tokens}"
        )
    length = assumed.length or max(1, rollout.max_new_tokens // 3)
    wanted, flat = rollout.prompts_per_step, assumed.flat
    filled = 1 - flat**rollout.max_rounds if rollout.dynamic_sampling else 1.0
    rounds = filled / (1 - flat) if rollout.dynamic_sampling else 1.0
    return StepTokens(
        sequences=round(wanted * filled) * rollout.group_size,
        prompt=assumed.prompt,
        length=length,
        sampled=round(wanted * rounds) * rollout.group_size * length,
        longest=assumed.prompt + rollout.max_new_tokens,
    )
