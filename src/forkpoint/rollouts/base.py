"""What an engine is: prompts in, completions out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from forkpoint.types import Completion, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """One completion to draw. ``serial`` and ``sample`` name its random stream."""

    prompt: Prompt
    serial: int
    sample: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How all completions of one call are drawn."""

    max_new_tokens: int
    temperature: float
    seed: int
    step: int
    purpose: str = "sample"
    """The first word of the random stream: training and evaluation never share draws."""


class Engine(Protocol):
    """Draws completions from the current policy.

    To bring your own: a class with these members, and a factory ``f(loaded_model, config)`` named
    by its dotted path in ``rollout.engine``.
    """

    captures_entropy: bool
    """Whether completions carry the entropy of the distributions they were sampled from."""
    same_weights: bool
    """Whether its log-probabilities are the training model's own (the model is shared in process),
    so that no pass is needed to get them before the first update."""

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
