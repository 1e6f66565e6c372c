"""Where the page's numbers come from: configurations, versions, seeds, commands."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from forkpoint.report.data import RunData
from forkpoint.report.text import visible


def provenance(run: RunData) -> dict[str, Any]:
    """What the footer says of a run, from env.json and config.json."""
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
        "config": visible(json.dumps(run.config, indent=2, ensure_ascii=False)),
    }


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
