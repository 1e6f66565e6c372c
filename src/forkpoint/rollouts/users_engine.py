"""An engine of the user's, whose faults name its file and line."""

from collections.abc import Callable, Sequence
from typing import Any

from forkpoint.dotted import call_users
from forkpoint.rollouts.base import Engine, SampleRequest, SamplingSettings
from forkpoint.types import Completion


class UsersEngine:
    """Passes everything on to ``engine``; what it raises becomes a ``UserCodeError``."""

    captures_entropy: bool
    same_weights: bool
    splits_temperatures: bool

    def __init__(self, engine: Engine, setting: str) -> None:
        self._engine, self._setting = engine, setting

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def sample(
        self,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        """See ``Engine.sample``."""
        sample = self._engine.sample
        return call_users(sample, requests, settings, should_stop, setting=self._setting)

    def close(self) -> None:
        """See ``Engine.close``."""
        call_users(self._engine.close, setting=self._setting)
