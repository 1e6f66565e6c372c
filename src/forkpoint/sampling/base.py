"""What an engine is: prompts in, completions out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from forkpoint.errors import ConfigError
from forkpoint.types import Completion, Prompt

LEAST_TEMPERATURE = 0.001
"""Above greedy: logits divided by less might leave float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """One completion to draw. ``serial`` and ``sample`` name its random stream."""

    prompt: Prompt
    serial: int
    sample: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitTemperature:
    """Two decoding temperatures: T' = ``above`` where H > ``threshold_nats``, else ``below``.

    The paper's Eq. 5. H is the entropy at temperature 1; 0 is greedy: the first most likely token.

    Raises:
        ConfigError: a threshold or temperature that cannot be.
    """

    threshold_nats: float
    above: float
    below: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold_nats) and self.threshold_nats >= 0):
            raise ConfigError(f"a threshold of {self.threshold_nats} nats; entropies are >= 0")
        for value in (self.above, self.below):
            if value != 0 and not (math.isfinite(value) and value >= LEAST_TEMPERATURE):
                raise ConfigError(
                    f"a temperature of {value}; it is 0 (greedy) or at least {LEAST_TEMPERATURE}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How all completions of one call are drawn."""

    max_new_tokens: int
    temperature: float
    seed: int
    step: int
    purpose: str = "sample"
    """The first word of the random stream: training and evaluation never share draws."""
    split: SplitTemperature | None = None
    """Needs ``temperature`` 1. Each token is drawn at its T'; its log-probability is that of the
    distribution it was drawn from, its entropy the H at temperature 1 that decided on T'."""

    def __post_init__(self) -> None:
        if self.split is not None and self.temperature != 1:
            raise ConfigError(
                f"split temperatures go by the entropy at temperature 1, not {self.temperature:g}"
            )


class Engine(Protocol):
    """Draws completions from the current policy.

    To bring your own: a class with these members, and a factory ``f(loaded_model, config)`` named
    by its dotted path in ``rollout.engine``. Of the three flags, one that is left out is False.
    """

    captures_entropy: bool
    """Whether completions carry the entropy of the distributions they were sampled from."""
    same_weights: bool
    """Whether its log-probabilities are the training model's own (the model is shared in process),
    so that no pass is needed to get them before the first update."""
    splits_temperatures: bool
    """Whether ``SamplingSettings.split`` is obeyed."""

    def sample(
        self,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        """One completion per request, in order.

        The draw of a token depends on (seed, purpose, step, serial, sample, position) and its
        distribution alone, not on what else is in the call.

        Raises:
            Interrupted: ``should_stop()`` turned true; nothing is kept.
            NumericalError: the model gave logits that are not finite.
        """
        ...

    def close(self) -> None:
        """Release what the engine holds."""
        ...
