"""The pictures of the documentation, of committed results: ``python scripts/docs_figures.py``.

``docs/figures/dial_CASE.svg`` from benchmarks/results/dial.json, ``study_*.svg`` from
docs/results/ablation_lab.json, ``learning_*.svg`` from docs/results/dial_lab.json. The same numbers
give the same files.
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from forkpoint.ablation.compare import over_seeds
from forkpoint.figures import ablation
from forkpoint.figures.axes import Axis, Point, Trace, reach, traces
from forkpoint.figures.render import save
from forkpoint.runs.ablation import Ablation, Arm, CurvePoint

ROOT = Path(__file__).parents[1]
RESULTS, FIGURES = ROOT / "docs" / "results", ROOT / "docs" / "figures"
WAYS = {
    ("looked_at", True): "looked at",
    ("looked_at", False): "no first hop",
    ("random", True): "random",
    ("oracle", True): "oracle",
}
"""(way, first hop) of benchmarks.dial, and its name."""


def main(out: Path = FIGURES) -> None:
    out.mkdir(exist_ok=True)
    for name, chart in charts().items():
        chart.background = "white"  # pages may be dark
        save(chart, out / f"{name}.svg")


def charts() -> dict[str, Any]:
    """All of them, by name."""
    cosines = json.loads((ROOT / "benchmarks" / "results" / "dial.json").read_text())["cosines"]
    found = {f"dial_{case}": dial(case, batches) for case, batches in cosines.items()}
    whole = study(json.loads((RESULTS / "ablation_lab.json").read_text())["runs"])
    found["study_differences"] = ablation.differences(whole)
    found["study_steps"] = ablation.accuracy_by_steps(whole)
    learning = Ablation.model_validate_json((RESULTS / "dial_lab.json").read_text())
    found["learning_steps"] = ablation.accuracy_by_steps(learning)
    found["learning_operations"] = ablation.accuracy_by_operations(learning)
    return found


def dial(case: str, batches: list[dict[str, Any]]) -> Any:
    """Cosine to the exact gradient against the share of live positions; the median of some batches,
    from the least to the most."""
    drawn = []
    for series, ((way, hop), name) in enumerate(WAYS.items()):
        at: dict[float, list[dict[str, float]]] = defaultdict(list)
        for batch in batches:
            for row in batch["ways"]:
                if (row["way"], row["first_hop"]) == (way, hop):
                    at[row["share"]].append(row)
        points = []
        for rows in at.values():
            if len(rows) < len(batches):  # a share that was tried on some of them only
                continue
            cosines = [row["cosine"] for row in rows]
            live, middle = statistics.fmean(r["live"] for r in rows), statistics.median(cosines)
            told = f"{name}, {100 * live:.0f} % live: {middle:.3f}"
            points.append(Point(live, middle, told, low=min(cosines), high=max(cosines)))
        drawn.append(Trace(series=series, name=name, points=points))
    across = [point.x for trace in drawn for point in trace.points]
    low, _ = reach([point.low or point.y for trace in drawn for point in trace.points])
    ends = (f"{trace.name} {trace.points[-1].y:.3f}" for trace in drawn)
    return traces(
        drawn,
        Axis(
            low=min(across), high=max(across), title="share of positions that are live", share=True
        ),
        Axis(low=low, high=1.0),
        label=f"Cosine to the exact gradient, {case}; at the most live {'; '.join(ends)}",
    )


def study(runs: list[dict[str, Any]], cell: str = "default") -> Ablation:
    """The runs of a cell of the laboratory's study, against ``all``."""
    by_variant: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for run in runs:
        if run["cell"] == cell:
            by_variant[run["variant"]][run["seed"]] = run
    last = {v: {s: r["curve"][-1][1] for s, r in by.items()} for v, by in by_variant.items()}
    arms = []
    for variant, by_seed in by_variant.items():
        pairs = [x - last["all"][s] for s, x in last[variant].items() if s in last["all"]]
        curve = []
        for index, (step, _) in enumerate(next(iter(by_seed.values()))["curve"]):
            values = [run["curve"][index][1] for run in by_seed.values()]
            mean = over_seeds(values)
            curve.append(CurvePoint(step=step, accuracy=mean, length_mean=None, operations=0.0))
        arms.append(
            Arm(
                label=variant,
                seeds=tuple(by_seed),
                final=tuple(last[variant].values()),
                accuracy=over_seeds(list(last[variant].values())),
                difference=over_seeds(pairs) if variant != "all" else None,
                curve=tuple(curve),
            )
        )
    return Ablation(reference="all", arms=tuple(arms))


if __name__ == "__main__":
    main()
