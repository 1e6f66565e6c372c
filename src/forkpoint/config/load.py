"""TOML files and ``--set a.b=c`` in, one checked RunConfig out."""

import difflib
import json
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from forkpoint.config.run import RunConfig
from forkpoint.errors import ConfigError

RECIPES = Path(__file__).parents[1] / "recipes"
"""Those that ship with the package."""

REPLACED = {
    "model.dtype": "trained parameters are always float32 now, since bfloat16 ones hardly learn; "
    "write model.compute_dtype for what a forward pass computes in (a run whose config.json has it "
    "was made by an earlier version, and only that one can go on with it)",
}
"""Keys of earlier versions, and what to write instead."""


def load_config(recipe: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a recipe with ``--set`` overrides applied.

    Args:
        recipe: a TOML file (or the config.json of a run), the name of a recipe that ships with the
            package (``lab_demo``), or None for the defaults.
        overrides: ``section.key=value``; the value is TOML, or a plain string if it is not.

    Raises:
        ConfigError: naming the key, what was wrong and, for a typo, the nearest key.
    """
    path = recipe_path(recipe) if recipe else None
    raw = _read(path) if path else {}
    if path and path.suffix == ".json":
        _check_presets(raw, overrides, path)
    for override in overrides:
        _apply(raw, override)
    return parse_config(raw, source=str(path) if path else "the command line")


def recipe_path(recipe: str | Path, shipped_in: Path = RECIPES) -> Path:
    """The file itself, or the one of that name that ships with the package.

    Args:
        shipped_in: the package's folder of such recipes.

    Raises:
        ConfigError: a name without a file and without a recipe: naming those there are.
    """
    path = Path(recipe)
    if path.is_file() or path.suffix in (".toml", ".json") or len(path.parts) > 1:
        return path
    shipped = shipped_in / f"{path.name}.toml"
    if not shipped.is_file():
        names = ", ".join(sorted(found.stem for found in shipped_in.glob("*.toml")))
        near = _near(path, shipped_in)
        raise ConfigError(
            f"there is no file and no recipe {str(recipe)!r}{near}; there are {names}"
        )
    return shipped


def _near(path: Path, shipped_in: Path = RECIPES) -> str:
    """A question after a file or a recipe of nearly this name, if there is one."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    names = {found.name: found.stem for found in shipped_in.glob("*.toml")}
    names |= {f.name: str(path.parent / f.name) for f in beside if f.suffix in (".toml", ".json")}
    near = difflib.get_close_matches(path.with_suffix(".toml").name, names, n=1)
    return f"; did you mean {names[near[0]]}?" if near else ""


def parse_config(raw: dict[str, Any], source: str = "the configuration") -> RunConfig:
    """Validate a raw mapping; all faults are reported at once, in words."""
    return parsed(RunConfig, raw, source)


def parsed(model: type[BaseModel], raw: dict[str, Any], source: str) -> Any:
    """A raw mapping as a model of settings.

    Raises:
        ConfigError: every fault, each with its key, and what was meant where a key is misspelt.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        faults = error.errors()
        # A list whose only item is faulty is reported as too short as well: one fault is enough.
        around = {e["loc"][:n] for e in faults for n in range(len(e["loc"]))}
        faults = [e for e in faults if e["type"] != "too_short" or e["loc"] not in around]
        lines = [_explain(model, e["loc"], e["type"], e["msg"], e.get("input")) for e in faults]
        raise ConfigError(f"{source}: " + "; ".join(lines)) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}{_near(path)}") from None
    except (ValueError, OSError) as error:  # not TOML, not JSON, not UTF-8
        raise ConfigError(f"{path} cannot be read: {error}") from None


def _check_presets(raw: dict[str, Any], overrides: Sequence[str], path: Path) -> None:
    """What a preset stands for is written out in the config.json of a run, and would stay."""
    stored = {
        f"{name}.preset": section["preset"]
        for name, section in raw.items()
        if isinstance(section, dict) and "preset" in section
    }
    for override in overrides:
        key, _, name = (part.strip() for part in override.partition("="))
        if key in stored and stored[key] != name.strip("\"'"):
            raise ConfigError(
                f"--set {override}: {path} has every setting of {stored[key]!r}, and a preset "
                "changes none that is there: set what is to be different, or start from the recipe"
            )


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r}: expected section.key=value")
    *sections, name = key.strip().split(".")
    node = raw
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {section!r} is a value, not a section")
    try:
        node[name] = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        node[name] = text.strip()  # a bare word: --set model.path=lab:walk


def _explain(
    model: type[BaseModel], loc: tuple[int | str, ...], kind: str, message: str, given: Any
) -> str:
    where = _dotted(loc)
    if kind == "extra_forbidden":
        if where in REPLACED:
            return f"{where} = {given!r}: {REPLACED[where]}"
        near = difflib.get_close_matches(str(loc[-1]), _fields_at(model, loc[:-1]), n=1)
        hint = f"; did you mean {_dotted((*loc[:-1], *near))}?" if near else ""
        return f"unknown key {where}{hint}"
    if kind == "tuple_type":
        message = f"expected a list, such as {json.dumps([given])}"
    message = message.removeprefix("Value error, ")
    return f"{where}: {message} (given {given!r})" if where else message


def _dotted(loc: tuple[int | str, ...]) -> str:
    """The key as it is written in a recipe: pydantic adds the union's tag, which is not one."""
    tag = {"task": 1, "rewards": 2}.get(str(loc[0])) if loc else None
    return ".".join(str(part) for i, part in enumerate(loc) if i != tag)


def _fields_at(root: type[BaseModel], loc: Iterable[int | str]) -> list[str]:
    """The keys allowed at a place in the tree; union tags in ``loc`` choose the member."""
    models: list[type[BaseModel]] = [root]
    for part in loc:
        nested = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        tagged = [
            m
            for m in models
            if "type" in m.model_fields and part in get_args(m.model_fields["type"].annotation)
        ]
        models = [m for a in nested for m in _models_in(a)] or tagged or models
    return [name for m in models for name in m.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in get_args(annotation) for m in _models_in(a)]
