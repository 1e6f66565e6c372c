"""An engine that replays given completions: for tests, and for training on stored rollouts."""

from collections.abc import Callable, Mapping, Sequence

from forkpoint.errors import DataError
from forkpoint.sampling.base import SampleRequest, SamplingSettings
from forkpoint.types import Completion


class ScriptedEngine:
    """Answers each (problem id, sample) with the completion it was given."""

    captures_entropy = True
    same_weights = False
    splits_temperatures = False

    def __init__(self, script: Mapping[tuple[str, int], Completion]) -> None:
        self._script = script

    def sample(
        self,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        """See ``Engine.sample``."""
        try:
            return [self._script[r.prompt.problem.id, r.sample] for r in requests]
        except KeyError as error:
            problem, sample = error.args[0]
            raise DataError(f"the script has no sample {sample} of problem {problem!r}") from None

    def close(self) -> None:
        """Nothing is held."""
