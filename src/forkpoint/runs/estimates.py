"""What all results share: frozen models, and one value with its interval."""

from typing import ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1  # it goes up when a field changes its name or its meaning


class Frozen(BaseModel):
    """Base: immutable, and a field it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(Frozen):
    """A value with its 95 % interval over ``n`` independent units: problems, prompts or seeds."""

    value: float
    low: float | None
    """None, as ``high``, where the units are too few to say anything about their spread."""
    high: float | None
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """``low`` and ``high``; None where they are not known."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def ends(self, pattern: str, factor: float = 1.0) -> str:
        """The interval as text, each end by ``pattern``: `` [25.6, 33.4]``; empty without one."""
        ends = [pattern.format(factor * end) for end in self.interval or ()]
        return f" [{', '.join(ends)}]" if ends else ""

    def percent(self) -> str:
        """For a share: ``29.3 % [25.6, 33.4]``."""
        return f"{100 * self.value:.1f} %{self.ends('{:.1f}', 100)}"


class Result(Frozen):
    """What all result files have."""

    file: ClassVar[str]  # its name in the folder ``results``
    schema_version: Literal[1] = 1


AnyResult = TypeVar("AnyResult", bound=Result)
