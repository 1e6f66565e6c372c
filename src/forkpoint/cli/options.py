"""The options that several commands share."""

import json
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from forkpoint.cli.terminal import visible

if TYPE_CHECKING:
    from rich.console import Console

Overrides = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        negative="",
        help="A setting as section.key=value, such as selection.keep_fraction=0.1; repeatable.",
    ),
]


def shorthands(model: str | None, task: str | None) -> list[str]:
    """``--model`` and ``--task`` as the settings they stand for."""
    settings = []
    if model is not None:
        settings.append(f"model.path={json.dumps(model)}")
    if task == "lab":
        settings.append('task={type="lab"}')
    elif task is not None:
        settings.append(f'task={{type="gym", name={json.dumps(task)}}}')
    return settings


def title(console: "Console", text: object) -> None:
    """A heading, after an empty line."""
    line = f"\n{visible(str(text))}"
    console.print(line, style="bold", highlight=False, markup=False)


def note(console: "Console", text: str) -> None:
    """A line about how a command goes; whatever it quotes, it stays one line."""
    console.print(f"  {visible(text)}", style="dim", highlight=False, markup=False)
