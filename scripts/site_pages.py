"""The pages of the site that nobody writes: commands, settings, recipes and the Python API.

Each is Markdown made from the thing itself, so that it cannot fall behind: the command line's own
help, the pydantic models with the docstring under each field, the recipes' files, the agreed public
names. Needs cyclopts and pydantic, no torch.
"""

import ast
import inspect
import json
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "src" / "forkpoint" / "recipes"
PUBLIC_NAMES = ROOT / "tests" / "architecture" / "public_names.txt"


def commands_page() -> str:
    """Every command with its help, as the command line itself says it."""
    from forkpoint.cli.main import app

    text = app.generate_docs()
    # the site has a table of contents of its own
    text = re.sub(r"## Table of Contents\n.*?(?=\*\*Commands\*\*)", "", text, flags=re.DOTALL)
    return "# Commands" + text.removeprefix("# forkpoint")


# ---- settings ------------------------------------------------------------------------------------

SETTINGS_HEAD = """# Settings

Every setting of a recipe, with its default below the name. A recipe is a TOML file of sections
(`forkpoint train my.toml`); `--set selection.keep_fraction=0.1` sets one from the command line.
`selection.preset` and `loss.preset` fill in what a recipe leaves out
([which](../selection.md#presets)); `--dry-run` prints what comes out.
"""


def settings_page() -> str:
    """Every setting: its name, type, default and the docstring under it."""
    from forkpoint.config import RunConfig

    return "\n".join([SETTINGS_HEAD, *_section(RunConfig, "")])


def _section(model: type[BaseModel], path: str) -> Iterator[str]:
    """One table for the model's own settings, then the sections within it."""
    within: list[tuple[str, FieldInfo, list[type[BaseModel]]]] = []
    rows: list[str] = []
    docs = field_docs(model)
    for name, field in model.model_fields.items():
        if models := list(_models(field.annotation)):
            within.append((f"{path}.{name}".removeprefix("."), field, models))
        else:
            kind = _kind(field.annotation, field.metadata)
            what = f"<br>{docs[name]}" if name in docs else ""
            rows.append(f"| `{name}`{_default(field)} | *{kind}*{what} |")
    if rows:
        yield "\n".join(["", "| setting | |", "|---|---|", *rows, ""])
    for inner, field, models in within:
        several = get_origin(field.annotation) is tuple
        title = f"\\[\\[{inner}]]" if several else f"\\[{inner}]"
        depth = "#" * (2 + inner.count("."))
        for one in models:
            kind = one.model_fields.get("type")
            which = f", type = {get_args(kind.annotation)[0]}" if kind else ""
            yield f"{depth} {title}{which}\n\n{_prose(one.__doc__ or '')}\n"
            yield from _section(one, inner)


def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """The docstring under each field, those of inherited fields among them; Python keeps none."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not (issubclass(base, BaseModel) and base.__module__.startswith("forkpoint.")):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[ast.unparse(field.target)] = _prose(inspect.cleandoc(below.value.value))
    return found


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a field holds: one, one of several, or a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for inner in get_args(annotation):
            yield from _models(inner)


BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def _kind(annotation: Any, metadata: Any = ()) -> str:
    """A type in words: ``number above 0``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(args[0], [*getattr(args[1], "metadata", args[1:]), *metadata])
    bounds = [
        f"{words} {getattr(entry, key):g}"
        for entry in metadata
        for key, words in BOUNDS.items()
        if hasattr(entry, key)
    ]
    if origin is Literal:
        return " · ".join(f"`{choice}`" for choice in args)
    if origin in (Union, UnionType):
        kinds = [_kind(a, metadata) for a in args if a is not type(None)]
        return " or ".join(kinds)
    if origin is tuple:
        return f"list of {_kind(args[0])}"
    if origin is dict:
        return "table"
    return " ".join([NAMES.get(annotation, getattr(annotation, "__name__", "any")), *bounds])


def _default(field: FieldInfo) -> str:
    """On a line of its own below the name; nothing for a setting that is left open."""
    if field.is_required():
        return "<br>required"
    return "" if field.default is None else f"<br>= `{json.dumps(field.default)}`"


def _prose(text: str) -> str:
    """A docstring on one line, its mentions of pages as links."""
    text = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r"\bdocs/([a-z-]+)\.md", r"[\1](../\1.md)", text)


# ---- recipes -------------------------------------------------------------------------------------

RECIPES_HEAD = """# Recipes

What ships with the package: `forkpoint train NAME`, and `forkpoint ablate NAME` for ablations. To
change one, `--set`, or copy it into a file of yours.

| name | what |
|---|---|
"""


def recipes_page() -> str:
    """Every recipe: what the comment at its top begins with, and the whole file."""
    texts = {p.stem: p.read_text(encoding="utf-8") for p in sorted(RECIPES.rglob("*.toml"))}
    rows = [f"| [`{name}`](#{name}) | {first_paragraph(text)} |" for name, text in texts.items()]
    files = [f"## {name} {{#{name}}}\n\n```toml\n{text}```\n" for name, text in texts.items()]
    return RECIPES_HEAD + "\n".join([*rows, "", *files])


def first_paragraph(text: str) -> str:
    """Of the comment at the top of a file."""
    lines = takewhile(lambda line: line.startswith("# "), text.splitlines())
    return " ".join(line.removeprefix("# ") for line in lines).rstrip(":")


# ---- Python --------------------------------------------------------------------------------------


def python_page() -> str:
    """The functions of ``import forkpoint``, and what a configuration is."""
    import forkpoint

    names = sorted(forkpoint.__all__, key=lambda name: (name[0].isupper(), name))
    parts = [f"::: forkpoint.{name}\n    options:\n      members: []\n" for name in names]
    return "\n".join(["# forkpoint\n", "How they are used: [the Python API](../api.md).\n", *parts])


def modules_page() -> str:
    """Every public name of the packages, by package."""
    names: dict[str, list[str]] = defaultdict(list)
    for line in PUBLIC_NAMES.read_text(encoding="utf-8").splitlines():
        module, _, name = line.rpartition(".")
        names[module].append(name)
    parts = [
        "# Modules\n\nThe names that stay: one that goes or changes is in the changelog. "
        "What is not here may change without a word.\n"
    ]
    for module, members in names.items():
        parts.append(
            f"::: forkpoint.{module}\n    options:\n      members: {json.dumps(members)}\n"
        )
    return "\n".join(parts)


PAGES = {
    "reference/commands.md": commands_page,
    "reference/settings.md": settings_page,
    "reference/recipes.md": recipes_page,
    "reference/python.md": python_page,
    "reference/modules.md": modules_page,
}
"""Place in the site -> what makes it."""
