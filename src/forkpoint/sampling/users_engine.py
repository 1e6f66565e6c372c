"""An engine of the user's, whose faults name its file and line."""

from collections.abc import Callable, Sequence
from typing import Any

from forkpoint.dotted import call_users
from forkpoint.errors import ConfigError, UserCodeError
from forkpoint.sampling.base import Engine, SampleRequest, SamplingSettings
from forkpoint.types import Completion


class UsersEngine:
    """Passes everything on to ``engine``; what it raises becomes a ``UserCodeError``."""

    def __init__(self, engine: Engine, setting: str, vocabulary: int) -> None:
        """
        Args:
            setting: what named the engine, such as ``rollout.engine = 'my_engine:make'``.
            vocabulary: how many tokens the policy knows.

        Raises:
            ConfigError: it has no method ``sample`` or ``close``.
        """
        for name in ("sample", "close"):
            if not callable(getattr(engine, name, None)):
                raise ConfigError(
                    f"{setting} made a {type(engine).__name__} without a method {name!r}: see "
                    "forkpoint.sampling.base.Engine"
                )
        self._engine, self._setting, self._vocabulary = engine, setting, vocabulary
        self.captures_entropy = bool(getattr(engine, "captures_entropy", False))
        self.same_weights = bool(getattr(engine, "same_weights", False))
        self.splits_temperatures = bool(getattr(engine, "splits_temperatures", False))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def sample(
        self,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        """See ``Engine.sample``.

        Raises:
            UserCodeError: it raised, or did not give one whole completion per request.
        """
        sample = self._engine.sample
        given = call_users(sample, requests, settings, should_stop, setting=self._setting)
        if fault := _fault(given, len(requests), self._vocabulary):
            raise UserCodeError(f"{self._setting} must sample one completion per request: {fault}")
        return list(given)

    def close(self) -> None:
        """See ``Engine.close``."""
        call_users(self._engine.close, setting=self._setting)


def _fault(given: Any, count: int, vocabulary: int) -> str | None:
    """What is wrong with the completions of ``count`` requests, or None."""
    if not isinstance(given, list | tuple):
        return f"it gave a {type(given).__name__}, not a list"
    if len(given) != count:
        return f"it gave {len(given)} for {count}"
    for completion in given:
        if not isinstance(completion, Completion):
            return f"it gave a {type(completion).__name__}, not a forkpoint.types.Completion"
        tokens = len(completion.token_ids)
        if tokens == 0:
            return "one has no tokens, not even that of its end"
        for name in ("logprobs", "entropies", "energies"):
            values = getattr(completion, name)
            if values is not None and len(values) != tokens:
                return f"one has {tokens} token_ids and {len(values)} {name}"
        for token in (min(completion.token_ids), max(completion.token_ids)):
            if not 0 <= token < vocabulary:
                return f"one has the token {token}, and the policy knows 0 to {vocabulary - 1}"
    return None
