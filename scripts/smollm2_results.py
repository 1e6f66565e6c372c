"""What ``forkpoint ablate smollm2_walk`` found: ``python scripts/smollm2_results.py RUN_DIR``.

Writes docs/results/smollm2_walk.json, the comparisons beside what every step measured, and prints
the two tables that EXPERIMENTS.md shows: which tokens are trained, and by which gradient.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from forkpoint.ablation.compare import compare
from forkpoint.ablation.recipe import PlannedRun, load_ablation, planned_runs
from forkpoint.ablation.runs import finished
from forkpoint.runs import RunDirectory, read_metrics
from forkpoint.runs.ablation import Ablation, Arm
from forkpoint.runs.atomic import write_json

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "smollm2_walk.json"
SHOWN = (1, 4, 8, 12)
"""Steps of the tables."""

TOKENS = ("all", "top20", "bottom80", "random20")
GRADIENTS = ("top20", "local_35", "local_forks")
"""The variants of each table; the first is the one that the others are compared with."""

SMOOTHED = 3
"""Steps over which a training reward is averaged where it is read between two steps."""

MEASURED = ("reward/mean", "work/flops", "work/live_fraction", "grad/cosine_to_exact")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", type=Path)
    options = parser.parse_args()
    recipe = load_ablation("smollm2_walk")
    runs = planned_runs(recipe, options.root)
    found = {"tokens": _compare(runs, TOKENS), "gradients": _compare(runs, GRADIENTS)}
    steps = {
        variant.name: {
            str(run.seed): _measured(run.folder)
            for run in runs
            if run.variant == variant.name and finished(run) is not None
        }
        for variant in recipe.variants
    }
    write_json(RESULTS, found | {"steps": steps})
    stored = json.loads(RESULTS.read_text())
    print(tokens_table(stored), gradients_table(stored), sep="\n\n")


def _compare(runs: list[PlannedRun], names: tuple[str, ...]) -> dict[str, Any]:
    return compare([run for run in runs if run.variant in names], names[0]).model_dump(mode="json")


def _measured(folder: Path) -> dict[str, list[float | None]]:
    """Step by step; None where a step did not measure it."""
    metrics = read_metrics(RunDirectory(folder).metrics_jsonl)
    lines = [line for line in metrics if line.get("reward/mean") is not None]
    return {name: [line.get(name) for line in lines] for name in MEASURED}


def tokens_table(stored: dict[str, Any]) -> str:
    """Of what is trained the training reward, and the held-out accuracy at the end, in per cent."""
    rows = [
        "| variant | seeds | training reward in step "
        + " / ".join(map(str, SHOWN))
        + " | held-out at the end, each seed | mean | against `all` | energy | minutes a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in Ablation.model_validate(stored["tokens"]).arms:
        rows.append(
            f"| `{arm.label}` | {len(arm.seeds)} | {_rewards(stored, arm)} | {_finals(arm)} | "
            f"{_against(arm)} | {100 * (arm.energy_share or 0):.0f} % | "
            f"{60 * (arm.hours or 0) / len(arm.seeds):.0f} |"
        )
    return "\n".join(rows)


def gradients_table(stored: dict[str, Any]) -> str:
    """Of the forks' exact gradient and of the local one: how near, at what price, with what end."""
    rows = [
        "| gradient | seeds | live | cosine to the exact one | operations, 10^12 | "
        "training reward in step "
        + " / ".join(map(str, SHOWN))
        + " | at equal operations | held-out at the end, each seed | mean | against exact |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    arms = Ablation.model_validate(stored["gradients"]).arms
    budget = min(sum(_values(stored, arm, "work/flops")) / len(arm.seeds) for arm in arms)
    for arm in arms:
        live = _values(stored, arm, "work/live_fraction")
        near = _values(stored, arm, "grad/cosine_to_exact")
        spent = sum(_values(stored, arm, "work/flops")) / len(arm.seeds) / 1e12
        label = "exact" if arm.label == GRADIENTS[0] else f"`{arm.label}`"
        rows.append(
            f"| {label} | {len(arm.seeds)} | {f'{fmean(live):.2f}' if live else ''} | "
            f"{f'{fmean(near):.3f} ({min(near):.3f} to {max(near):.3f})' if near else ''} | "
            f"{spent:.1f} | {_rewards(stored, arm)} | {_rewards_at(stored, arm, budget)} | "
            f"{_finals(arm)} | {_against(arm)} |"
        )
    return "\n".join(rows)


def _rewards_at(stored: dict[str, Any], arm: Arm, budget: float) -> str:
    """Each seed's, a mean of ``SMOOTHED`` steps, where so many operations were spent."""
    found = []
    for one in stored["steps"][arm.label].values():
        rewards, spent = one["reward/mean"], np.cumsum(one["work/flops"])
        means = [fmean(rewards[max(0, i + 1 - SMOOTHED) : i + 1]) for i in range(len(rewards))]
        found.append(float(np.interp(budget, spent, means)))
    return ", ".join(f"{100 * value:.0f}" for value in found)


def _values(stored: dict[str, Any], arm: Arm, name: str) -> list[float]:
    """Of all steps of all seeds, where it was measured."""
    seeds = stored["steps"][arm.label].values()
    return [value for one in seeds for value in one[name] if value is not None]


def _rewards(stored: dict[str, Any], arm: Arm) -> str:
    seeds = [one["reward/mean"] for one in stored["steps"][arm.label].values()]
    return " / ".join(f"{100 * fmean(one[step - 1] for one in seeds):.0f}" for step in SHOWN)


def _finals(arm: Arm) -> str:
    return f"{', '.join(f'{100 * v:.1f}' for v in arm.final)} | {100 * arm.accuracy.value:.1f}"


def _against(arm: Arm) -> str:
    if arm.difference is None:
        return ""
    return f"{100 * arm.difference.value:+.1f}{arm.difference.ends('{:.1f}', 100)}"


if __name__ == "__main__":
    main()
