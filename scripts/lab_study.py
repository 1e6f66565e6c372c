"""The study of the laboratory: ``python scripts/lab_study.py --root FOLDER --cell forks10``.

Variants of selection, each with several seeds, in cells that differ in the world, in the size of
the policy or in the share of forks. Runs go to ``--root``. What they found is added, run by run, to
docs/results/ablation_lab.json, from which the table there is made anew. Runs that are through, or
stand there already, are not made again: so a study may be made in parts, on several machines.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from forkpoint.ablation.compare import over_seeds
from forkpoint.ablation.recipe import AblationRecipe, PlannedRun, load_ablation, planned_runs
from forkpoint.ablation.runs import finished, make_runs
from forkpoint.cli.terminal import SafeConsole
from forkpoint.errors import ForkpointError, RunError
from forkpoint.lab import BASE_POLICIES, WORLDS
from forkpoint.lab.base_policy import LAYERS, WIDTH, build_model, build_tokenizer
from forkpoint.runs import RunDirectory, read_metrics
from forkpoint.runs.atomic import write_json

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "ablation_lab.json"
FOUR = ("all", "top20", "bottom80", "random20")
REFERENCE = "all"


class Cell(NamedTuple):
    """A policy and a world in which variants are compared; the default ones are shipped."""

    variants: Sequence[str] | None = FOUR
    """None: every one of the recipe."""
    width: int = WIDTH
    layers: int = LAYERS
    verbosity: int = 1
    world: str = "walk"

    @property
    def base(self) -> list[str]:
        """How the base policy is made; nothing where it is the shipped one."""
        flags = [f"--width={self.width}", f"--layers={self.layers}"]
        flags += ["--set", f"verbosity={self.verbosity}"]
        return [] if self in (DEFAULT, GAME) else flags

    @property
    def settings(self) -> list[str]:
        """Of the runs."""
        if self.world == "game":  # longer, its answers grow until they are cut off
            game = ["rollout.max_new_tokens=168", "training.steps=16", "evaluation.every=4"]
            return ["model.path=lab:game", "task.world=game", "optim.lr=1.5e-4", *game]
        if self.verbosity == 1:
            return []
        return [f"task.parameters.verbosity={self.verbosity}", "rollout.max_new_tokens=96"]

    @property
    def parameters(self) -> int:
        """Weights of the policy."""
        tokenizer = build_tokenizer(WORLDS[self.world]())
        model = build_model(tokenizer, 0, width=self.width, layers=self.layers)
        return sum(p.numel() for p in model.parameters())

    @property
    def fork_share(self) -> float:
        """Of the words of an answer, those that are free; the game's as its README has it."""
        return 0.17 if self.world == "game" else {0: 0.4, 1: 0.2, 2: 0.1}[self.verbosity]


DEFAULT = Cell(variants=None)
GAME = Cell(world="game")
CELLS = {
    "default": DEFAULT,
    "small": Cell(width=64, layers=2),
    "large": Cell(width=256, layers=4),
    "forks40": Cell(verbosity=0),
    "forks10": Cell(verbosity=2),
    "game": GAME,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--cell", choices=CELLS, default="default")
    parser.add_argument("--seeds", type=int, default=8, help="of each variant, from 0")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if min(options.seeds, options.jobs) < 1:
        parser.error("--seeds and --jobs are 1 at least")
    console = SafeConsole()
    try:
        made = {(r["cell"], r["variant"], r["seed"]) for r in _stored()}
        planned = _planned(options.cell, options.root, options.seeds)
        runs = [run for run in planned if (options.cell, run.variant, run.seed) not in made]
        with console.stoppable("go on with the same command") as stop:
            try:
                recipe = load_ablation("ablation_lab").recipe
                make_runs(runs, recipe, jobs=options.jobs, note=console.note, should_stop=stop)
            finally:
                found = [record(options.cell, run) for run in runs if finished(run)]
                _add(found)
                console.note(f"{len(found)} more runs of {options.cell} in {RESULTS}")
    except ForkpointError as error:
        sys.exit(str(error))


def _planned(name: str, root: Path, seeds: int) -> list[PlannedRun]:
    cell, recipe = CELLS[name], load_ablation("ablation_lab")
    wanted = [v for v in recipe.variants if cell.variants is None or v.name in cell.variants]
    changes = {"variants": tuple(wanted), "seeds": tuple(range(seeds))}
    settings = list(cell.settings)
    if cell.base:
        folder = root / f"base_{name}"
        if not (folder / "README.md").exists():
            command = [sys.executable, "-m", "forkpoint.lab.base_policy", "--world", "walk"]
            subprocess.run([*command, "--out", str(folder), *cell.base], check=True)
        settings += [f"model.path={json.dumps(str(folder))}", "task.world=walk"]
    return planned_runs(
        AblationRecipe.model_validate(recipe.model_dump() | changes), root / name, settings
    )


def record(cell: str, run: PlannedRun) -> dict[str, Any]:
    """What a finished run found, in a few numbers."""
    evaluations = finished(run) or []
    lines = [m for m in read_metrics(RunDirectory(run.folder).metrics_jsonl) if m["step"]]
    steps = [line for line in lines if line.get("selection/kept_fraction") is not None]
    return {
        "cell": cell,
        "variant": run.variant,
        "seed": run.seed,
        "settings": [s for s in run.settings if not s.startswith("model.path")],
        "made_by": _made_by(run),
        "curve": [[one.step, one.accuracy.value] for one in evaluations],
        "energy_share": fmean(
            x for line in steps if (x := line.get("selection/energy_share")) is not None
        ),
        "entropy_first": steps[0]["entropy/mean"],
        "entropy_last": steps[-1]["entropy/mean"],
        "truncated_last": steps[-1]["completion/truncated_fraction"],
        "operations": sum(line.get("work/flops") or 0.0 for line in lines),
        "seconds": sum(line.get("time/step_s") or 0.0 for line in lines),
    }


def _made_by(run: PlannedRun) -> str:
    """A fingerprint of what the runs of a cell have in common: every setting but seeds and what a
    variant is of (selection, loss, micro-batches), and the weights of the base policy."""
    excluded = {"name": True, "selection": True, "loss": True}
    excluded |= {"training": {"seed", "micro_batch_sequences"}, "task": {"seed"}, "model": {"path"}}
    # without defaults: a setting that a later version adds changes nothing
    settings = run.config.model_dump(mode="json", exclude=excluded, exclude_defaults=True)
    path = run.config.model.path
    base = BASE_POLICIES.get(path, Path(path)) / "model.safetensors"
    text = json.dumps(settings, sort_keys=True).encode() + base.read_bytes()
    return hashlib.sha256(text).hexdigest()[:16]


def _stored() -> list[dict[str, Any]]:
    """The runs that were recorded before, here or elsewhere."""
    return json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []


def _add(found: list[dict[str, Any]]) -> None:
    """Put runs into the file, in the place of earlier ones of the same name, and the table anew."""
    runs = {(r["cell"], r["variant"], r["seed"]): r for r in [*_stored(), *found]}
    ordered = [runs[name] for name in sorted(runs, key=_place)]
    _check_comparable(ordered)
    write_json(RESULTS, {"variants": table(ordered), "runs": ordered})


def _check_comparable(runs: list[dict[str, Any]]) -> None:
    """Runs of a cell must differ by their variant alone, those of a variant by their seed alone."""
    for one in runs:
        first = next(r for r in runs if r["cell"] == one["cell"])
        same = next(r for r in runs if r["cell"] == one["cell"] and r["variant"] == one["variant"])
        if one["made_by"] != first["made_by"] or one["settings"] != same["settings"]:
            raise RunError(
                f"{one['cell']}, {one['variant']}, seed {one['seed']} was made with other settings "
                f"or from another base policy than {first['variant']}, seed {first['seed']}: "
                f"nothing was written to {RESULTS}"
            )


def _place(name: tuple[str, str, int]) -> tuple[int, int, int]:
    cell, variant, seed = name
    order = [v.name for v in load_ablation("ablation_lab").variants]
    return list(CELLS).index(cell), order.index(variant), seed


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each variant of each cell, over seeds: Student's interval of the mean and of the differences
    to ``all``, paired by seed."""
    by_variant: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for run in runs:
        by_variant.setdefault((run["cell"], run["variant"]), {})[run["seed"]] = run
    rows = []
    for (cell, variant), seeds in by_variant.items():
        last = {seed: run["curve"][-1][1] for seed, run in seeds.items()}
        others = by_variant.get((cell, REFERENCE), {})
        pairs = [last[s] - others[s]["curve"][-1][1] for s in last if s in others]
        mean = over_seeds(list(last.values()))
        row: dict[str, Any] = {
            "variant": variant,
            "cell": cell,
            "size": CELLS[cell].parameters,
            "fork_share": CELLS[cell].fork_share,
            "seeds": len(last),
            "mean": mean.value,
            "low": mean.low,
            "high": mean.high,
            "before": fmean(run["curve"][0][1] for run in seeds.values()),
        }
        if variant != REFERENCE and pairs:
            difference = over_seeds(pairs)
            row["difference"] = difference.value
            row["difference_low"], row["difference_high"] = difference.low, difference.high
        for name in ("energy_share", "entropy_first", "entropy_last", "truncated_last"):
            row[name] = fmean(run[name] for run in seeds.values())
        row["operations"] = fmean(run["operations"] for run in seeds.values())
        row["hours_of_all_seeds"] = sum(run["seconds"] for run in seeds.values()) / 3600
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
