"""Small run directories made by hand, for the tests of the report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from forkpoint.config import parse_config
from forkpoint.runs import RunDirectory
from forkpoint.runs.completions import StoredCompletion, write_completions
from tests.stored import make_completion

HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    "<img src=x onerror=window.hacked=3>",
    "<!-- <style>* { display: none }</style>",
    "line\u2028paragraph\u2029end",
    "\u202eright to left\u202c \u200f\u2067",
    "nul\x00 bell\x07 escape\x1b[31m delete\x7f \x85",
    "&lt;b&gt; &amp; \"quotes' `back`",
    "{{ 7 * 7 }} {% raw %}",
)


def make_row(
    serial: int = 0,
    sample: int = 0,
    *,
    tokens: Sequence[str] = ("a", " b"),
    entropies: Sequence[float] | None = (0.5, 0.25),
    selected: Sequence[bool] | None = None,
    ids: Sequence[int] | None = None,
    reward: float | None = 1.0,
    **fields: Any,
) -> StoredCompletion:
    """A completion of a training step; what is not given is made up."""
    settings: dict[str, Any] = {"step": 1, "advantage": 0.5, "accepted": True}
    row = make_completion(
        serial,
        sample,
        texts=tokens,
        ids=ids,
        entropies=entropies,
        known=entropies is not None,
        reward=reward,
        selected=list(selected if selected is not None else [False] * len(tokens)),
        **{**settings, **fields},
    )
    return replace(row, completion=replace(row.completion, top_ids=None, top_logprobs=None))


def make_run(
    root: Path,
    *,
    metrics: Sequence[Mapping[str, Any]] = ({"step": 1, "reward/mean": 0.25},),
    rows: Mapping[int, Sequence[StoredCompletion]] | None = None,
    config: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> Path:
    """A run directory with the given lines and rows.

    Args:
        config: on top of the defaults.
    """
    directory = RunDirectory(root)
    root.mkdir(parents=True)
    lines = "".join(json.dumps(line) + "\n" for line in metrics)
    directory.metrics_jsonl.write_text(lines, encoding="utf-8")
    resolved = parse_config(dict(config or {})).model_dump_json()
    directory.config_json.write_text(resolved, encoding="utf-8")
    env: dict[str, Any] = {
        "schema_version": 2,
        "command": ["forkpoint", "train"],
        "versions": {"torch": "2.13.0"},
        "git": "abc",
    }
    directory.env_json.write_text(json.dumps({**env, **(environment or {})}), encoding="utf-8")
    for step, step_rows in (rows or {}).items():
        write_completions(
            directory.completions_dir("train") / f"step_{step:05d}.parquet", step_rows
        )
    return root


def hostile_run(root: Path) -> Path:
    """Every text of the run is an attack: tokens, prompts, ids, errors, settings, command."""
    rows = [
        make_row(
            serial,
            sample,
            tokens=[text, text + " again"],
            ids=[serial, 100 + serial],
            text=text + text + " again",
            prompt=text,
            prompt_id=text,
            error=text,
            reward=float(sample),
        )
        for serial, text in enumerate(HOSTILE)
        for sample in range(12)
    ]
    run = make_run(root, rows={1: rows}, environment={"command": list(HOSTILE), HOSTILE[0]: "x"})
    path = RunDirectory(run).config_json
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["path"] = HOSTILE[1]
    config["selection"]["rule"] = HOSTILE[2] + "\ud800"
    path.write_text(json.dumps(config), encoding="utf-8")
    return run
