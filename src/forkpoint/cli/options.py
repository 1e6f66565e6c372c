"""What several commands share: their options, how they stop, and how they print."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from forkpoint.cli.terminal import visible
from forkpoint.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from forkpoint.config import RunConfig
    from forkpoint.training.stop import StopFlag

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

    task: Annotated[
        str | None,
        Parameter(help="``lab``, or the name of a reasoning-gym task such as chain_sum."),
    ] = None
    problems: Annotated[int | None, Parameter(help="How many held-out problems.")] = None
    samples: Annotated[int | None, Parameter(help="Completions per problem.")] = None
    set_: Overrides = None

    @property
    def chosen(self) -> bool:
        """Whether anything but a setting was said."""
        return (self.task, self.problems, self.samples) != (None, None, None)

    def settings(self, model: str | None = None) -> list[str]:
        """As settings: ``--model`` and ``--task``, then what --set says."""
        settings = [] if model is None else [f"model.path={json.dumps(model)}"]
        if self.task == "lab":
            settings.append('task={type="lab"}')
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
        numbers = {}
        for name, given, default in (
            ("problems", self.problems, problems),
            ("samples", self.samples, samples),
        ):
            if given is not None or name not in config.evaluation.model_fields_set:
                numbers[name] = default if given is None else given
        if min(numbers.values(), default=1) < 1:
            raise ConfigError("--problems and --samples must be 1 at least")
        evaluation = config.evaluation.model_copy(update=numbers)
        return config.model_copy(update={"evaluation": evaluation})


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SampledModel(HeldOut):
    """The same, of a model that is named."""

    model: Annotated[
        str | None, Parameter(help="``lab``, a folder (a run's checkpoint is one) or a hub id.")
    ] = None


@contextmanager
def stoppable(console: "Console", kept: str) -> Iterator["StopFlag"]:
    """Let Ctrl-C or SIGTERM end the body at its next safe point, and exit as shells expect.

    Args:
        kept: what the user is told then: what is kept and how to go on.

    Raises:
        SystemExit: a signal ended the body.
    """
    from forkpoint.training.stop import StopFlag

    with StopFlag() as stop:
        try:
            yield stop
        except Interrupted as stopped:
            if stop.signal is None:
                raise
            note(console, f"{stopped}; {kept}")
            raise SystemExit(stop.exit_code) from None


def say(console: "Console", *lines: object, style: str = "none") -> None:
    """Lines as they are: nothing in them is markup or highlighted."""
    for line in lines:
        console.print(str(line), style=style, highlight=False, markup=False)


def title(console: "Console", text: object) -> None:
    """A heading, after an empty line."""
    say(console, f"\n{visible(str(text))}", style="bold")


def note(console: "Console", text: str) -> None:
    """A line about how a command goes; whatever it quotes, it stays one line."""
    say(console, f"  {visible(text)}", style="dim")


def table(*columns: str, left: tuple[str, ...] = ()) -> "Table":
    """An empty table whose columns stand on the right but for those in ``left``."""
    from rich import box
    from rich.table import Table

    made: Any = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        made.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return made
