"""Where the page's numbers come from: configurations, versions, seeds, commands."""

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from forkpoint.figures.text import visible
from forkpoint.report.data import RunData
from forkpoint.runs import RunDirectory
from forkpoint.runs.ablation import Ablation
from forkpoint.runs.atomic import read_object


def provenance(run: RunData) -> dict[str, Any]:
    """What the footer says of a run, from env.json, config.json and those of analyses."""
    recipe = read_object(RunDirectory(run.root).recipe_json)
    environment = {**run.environment, **_of_an_ablations_runs(run)}
    command = environment.pop("command", None)
    versions = environment.pop("versions", None) or {}
    if isinstance(command, list):
        command = shlex.join(str(part) for part in command)
    seeds = {k: v for k, v in leaves(_settings(run)).items() if k.split(".")[-1] == "seed"}
    return {
        "label": visible(run.label),
        "command": visible(str(command)) if command else None,
        "versions": {visible(str(k)): visible(str(v)) for k, v in versions.items()},
        "facts": {visible(k): visible(str(v)) for k, v in {**seeds, **environment}.items()},
        "file": "recipe.json" if recipe else "config.json",
        "config": _json(recipe or _settings(run)),
        "analyses": list(_analyses(run)),
    }


def _settings(run: RunData) -> dict[str, Any]:
    """config.json; empty without one."""
    return run.config.model_dump(mode="json") if run.config else {}


def _of_an_ablations_runs(run: RunData) -> dict[str, Any]:
    """What they ran on, each value that any of them has, and how long; empty of other folders."""
    found = run.result(Ablation)
    if found is None:
        return {}
    hours = [arm.hours for arm in found.arms if arm.hours is not None]
    facts: dict[str, Any] = {"hours of all runs": f"{sum(hours):.2f}"} if hours else {}
    environments = [read_object(path) for path in sorted(run.root.glob("*/seed_*/env.json"))]
    for name in ("platform", "device", "cpu_capability", "threads", "git"):
        if values := dict.fromkeys(str(one[name]) for one in environments if name in one):
            facts[name] = ", ".join(values)
    return facts


DECISIVE = (
    "source",
    "top_k",
    "base",
    "model.path",
    "task.",
    "evaluation.",
    "rollout.",
    "threshold",
)
"""The settings that decide what was measured: keys, and beginnings of keys."""


def _analyses(run: RunData) -> Iterator[dict[str, Any]]:
    """The settings of each measurement, which stand beside its pieces or its completions."""
    for path in sorted(run.root.glob("*/*/settings.json")):
        settings = read_object(path)
        flat = {key.removeprefix("config."): v for key, v in leaves(settings).items()}
        facts = {
            key: value
            for key, value in flat.items()
            if (key.startswith(DECISIVE) or key.split(".")[-1] == "seed") and value is not None
        }
        if settings:
            yield {
                "path": visible(str(path.relative_to(run.root))),
                "facts": {visible(k): visible(str(v)) for k, v in facts.items()},
                "config": _json(settings),
            }


def _json(value: dict[str, Any]) -> str:
    return visible(json.dumps(value, indent=2, ensure_ascii=False))


def leaves(config: dict[str, Any]) -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``; lists are leaves."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in leaves(value).items()}
        else:
            flat[key] = value
    return flat


def differences(runs: Sequence[RunData]) -> list[tuple[str, list[str]]]:
    """The settings that are not the same in all runs, with each run's value."""
    flat = [leaves(_settings(run)) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, [one.get(key) for one in flat]) for key in keys]
    return [
        (visible(key), [visible(json.dumps(v, ensure_ascii=False)) for v in values])
        for key, values in rows
        if any(value != values[0] for value in values)
    ]
