"""Where the page's numbers come from: configurations, versions, seeds, commands."""

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from forkpoint.report.data import RunData
from forkpoint.report.text import visible
from forkpoint.runs.atomic import read_object


def provenance(run: RunData) -> dict[str, Any]:
    """What the footer says of a run, from env.json, config.json and those of analyses."""
    environment = dict(run.environment)
    command = environment.pop("command", None)
    versions = environment.pop("versions", None) or {}
    if isinstance(command, list):
        command = shlex.join(str(part) for part in command)
    seeds = {k: v for k, v in leaves(run.config).items() if k.split(".")[-1] == "seed"}
    return {
        "label": visible(run.label),
        "command": visible(str(command)) if command else None,
        "versions": {visible(str(k)): visible(str(v)) for k, v in versions.items()},
        "facts": {visible(k): visible(str(v)) for k, v in {**seeds, **environment}.items()},
        "config": _json(run.config),
        "analyses": list(_analyses(run)),
    }


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
    """The settings of each measurement, from analysis/config.json and analysis/*/config.json."""
    folder = run.analysis_dir
    for path in (folder / "config.json", *sorted(folder.glob("*/config.json"))):
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
    flat = [leaves(run.config) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, [one.get(key) for one in flat]) for key in keys]
    return [
        (visible(key), [visible(json.dumps(v, ensure_ascii=False)) for v in values])
        for key, values in rows
        if any(value != values[0] for value in values)
    ]
