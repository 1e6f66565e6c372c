"""The options that several commands share."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from forkpoint.errors import ConfigError

if TYPE_CHECKING:
    from forkpoint.config import RunConfig

PROBLEMS = 50
SAMPLES = 8
"""Of an analysis without --problems and --samples, where the recipe says nothing either."""

Overrides = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        negative="",
        help="A setting as section.key=value, such as selection.keep_fraction=0.1; repeatable.",
    ),
]
Recipe = Annotated[
    Path | None,
    Parameter(help="A TOML file, or the name of a shipped recipe; without one the laboratory."),
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Which held-out problems a command samples, and of which task."""

    task: str | None = None
    """``lab:walk``, ``lab:game``, or the name of a reasoning-gym task such as chain_sum."""
    problems: int | None = None
    """How many held-out problems."""
    samples: int | None = None
    """Completions per problem."""
    set_: Overrides = None

    @property
    def chosen(self) -> bool:
        """Whether anything but a setting was said."""
        return (self.task, self.problems, self.samples) != (None, None, None)

    def settings(self, model: str | None = None) -> list[str]:
        """As settings: ``--model`` and ``--task``, then what --set says."""
        settings = [] if model is None else [f"model.path={json.dumps(model)}"]
        if self.task is not None and self.task.startswith("lab:"):
            world = json.dumps(self.task.removeprefix("lab:"))
            settings.append(f'task={{type="lab", world={world}}}')
        elif self.task is not None:
            settings.append(f'task={{type="gym", name={json.dumps(self.task)}}}')
        return [*settings, *(self.set_ or [])]

    def config(
        self,
        recipe: Path | None,
        model: str | None = None,
        *,
        problems: int = PROBLEMS,
        samples: int = SAMPLES,
    ) -> "RunConfig":
        """The configuration of an analysis.

        Args:
            problems: how many, where neither --problems nor the recipe says it; ``samples`` too.

        Raises:
            ConfigError: the recipe or a setting is wrong, or a number is below 1.
        """
        from forkpoint.config import load_config

        config = load_config(recipe, self.settings(model))
        numbers = {
            name: default if given is None else given
            for name, given, default in (
                ("problems", self.problems, problems),
                ("samples", self.samples, samples),
            )
            if given is not None or name not in config.evaluation.model_fields_set
        }
        if min(numbers.values(), default=1) < 1:
            raise ConfigError("--problems and --samples must be 1 at least")
        evaluation = config.evaluation.model_copy(update=numbers)
        return config.model_copy(update={"evaluation": evaluation})


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SampledModel(HeldOut):
    """The same, of a model that is named."""

    model: str | None = None
    """``lab:walk``, ``lab:game``, a folder (a run's checkpoint is one) or a hub id."""
