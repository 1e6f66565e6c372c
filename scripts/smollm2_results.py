"""What ``forkpoint ablate smollm2_walk`` found: ``python scripts/smollm2_results.py RUN_DIR``.

Writes docs/results/smollm2_walk.json, the comparison beside every step's training reward, and
prints the table that EXPERIMENTS.md shows.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from forkpoint.ablation.compare import compare
from forkpoint.ablation.recipe import load_ablation, planned_runs
from forkpoint.runs import RunDirectory, read_metrics
from forkpoint.runs.ablation import Ablation
from forkpoint.runs.atomic import write_json

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "smollm2_walk.json"
SHOWN = (1, 4, 8, 12)
"""Steps of the table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", type=Path)
    options = parser.parse_args()
    recipe = load_ablation("smollm2_walk")
    runs = planned_runs(recipe, options.root)
    found = compare(runs, recipe.reference or recipe.variants[0].name)
    rewards = {
        arm.label: {
            run.seed: _rewards(run.folder)
            for run in runs
            if run.variant == arm.label and run.seed in arm.seeds
        }
        for arm in found.arms
    }
    write_json(RESULTS, {"comparison": found.model_dump(mode="json"), "train_reward": rewards})
    print(table(json.loads(RESULTS.read_text())))


def _rewards(folder: Path) -> list[float]:
    """The mean reward of all that was sampled, step by step."""
    lines = read_metrics(RunDirectory(folder).metrics_jsonl)
    return [reward for line in lines if (reward := line.get("reward/mean")) is not None]


def table(stored: dict[str, Any]) -> str:
    """Of each variant the training reward, and the held-out accuracy at the end, in per cent."""
    found = Ablation.model_validate(stored["comparison"])
    rows = [
        "| variant | seeds | training reward in step "
        + " / ".join(map(str, SHOWN))
        + " | held-out at the end, each seed | mean | against `all` | energy | minutes a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in found.arms:
        rewards = list(stored["train_reward"][arm.label].values())
        means = [100 * fmean(one[step - 1] for one in rewards) for step in SHOWN]
        other = ""
        if arm.difference is not None:
            other = f"{100 * arm.difference.value:+.1f}{arm.difference.ends('{:.1f}', 100)}"
        rows.append(
            f"| `{arm.label}` | {len(arm.seeds)} | {' / '.join(f'{mean:.0f}' for mean in means)} | "
            f"{', '.join(f'{100 * final:.1f}' for final in arm.final)} | "
            f"{100 * arm.accuracy.value:.1f} | {other} | {100 * (arm.energy_share or 0):.0f} % | "
            f"{60 * (arm.hours or 0) / len(arm.seeds):.0f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
