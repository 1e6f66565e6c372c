"""Accuracy at equal operations: ``python -m benchmarks.dial_learning runs/dial_lab``.

Reads what ``forkpoint ablate dial_lab`` has made. The budget is that of the variant which needs
least for all its steps; every run's accuracy there is read off its curve, straight between
evaluations. Goes into benchmarks/results/dial.json, and the comparison itself into
docs/results/dial_lab.json, of which the pictures are drawn.
"""

import argparse
import json
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.dial import RESULTS
from forkpoint.ablation.compare import compare, over_seeds
from forkpoint.ablation.recipe import PlannedRun, load_ablation, planned_runs
from forkpoint.ablation.runs import finished
from forkpoint.runs import RunDirectory, read_metrics
from forkpoint.runs.atomic import write_json

COMPARISON = Path(__file__).parents[1] / "docs" / "results" / "dial_lab.json"
REFERENCE = "sparse"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=Path)
    root = parser.parse_args().runs
    recipe = load_ablation("dial_lab")
    runs = [run for run in planned_runs(recipe, root) if finished(run) is not None]
    counts = {v.name: {r.seed for r in runs if r.variant == v.name} for v in recipe.variants}
    seeds = set.intersection(*counts.values())
    runs = [run for run in runs if run.seed in seeds]
    COMPARISON.write_text(compare(runs, REFERENCE).model_dump_json(indent=1) + "\n")
    result = json.loads(RESULTS.read_text())
    write_json(RESULTS, result | {"learning": at_equal_operations(runs)})


def at_equal_operations(runs: list[PlannedRun]) -> dict[str, Any]:
    """Of each variant: operations of all steps, accuracy at the end and at the least of these."""
    curves = {(run.variant, run.seed): curve(run) for run in runs}
    variants = dict.fromkeys(run.variant for run in runs)
    totals = {v: fmean(c[0][-1] for (name, _), c in curves.items() if name == v) for v in variants}
    budget = min(totals.values())
    found: dict[str, Any] = {}
    for variant in variants:
        own = {seed: c for (name, seed), c in curves.items() if name == variant}
        at = {seed: float(np.interp(budget, *c)) for seed, c in own.items()}
        reference = {s: float(np.interp(budget, *curves[REFERENCE, s])) for s in own}
        row = {
            "operations": totals[variant],
            "seeds": len(own),
            "at_the_end": over_seeds([c[1][-1] for c in own.values()]),
            "at_the_budget": over_seeds(list(at.values())),
            "difference": over_seeds([at[s] - reference[s] for s in own]),
        }
        found[variant] = {
            k: v.model_dump() if hasattr(v, "model_dump") else v for k, v in row.items()
        }
    return {"budget": budget, "variants": found}


def curve(run: PlannedRun) -> tuple[list[float], list[float]]:
    """Operations up to each evaluation, and its accuracy."""
    lines = read_metrics(RunDirectory(run.folder).metrics_jsonl)
    spent = dict(
        zip(
            (line["step"] for line in lines),
            accumulate(line.get("work/flops") or 0.0 for line in lines),
            strict=True,
        )
    )
    evaluations = finished(run) or []
    return [spent[e.step] for e in evaluations], [e.accuracy.value for e in evaluations]


if __name__ == "__main__":
    main()
