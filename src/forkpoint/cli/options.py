"""The options that several commands share."""

from typing import Annotated

from cyclopts import Parameter

Overrides = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        negative="",
        help="A setting as section.key=value, such as selection.keep_fraction=0.1; repeatable.",
    ),
]
