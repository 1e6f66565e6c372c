"""Does one way to train learn as well as another? Laboratory, several seeds.

    python -m benchmarks.learning gradient --out runs/gradient --seeds 5
    python -m benchmarks.learning precision --out runs/precision --seeds 3

Trains the shipped policy by each arm of a study with the same seeds; then writes ``summary.json``
and prints a table: held-out accuracy and reward over seeds, the training's floating-point
operations, and the share of weights that training changed. Runs that are finished are kept.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from scipy.stats import t as student

from forkpoint.lab import BASE_POLICIES

STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "gradient": {
        f"{'exact' if way == 'sparse' else way}, {tokens}": {
            "training.gradient": way,
            "selection.keep_fraction": share,
        }
        for tokens, share in (("forks", 0.2), ("all", 1.0))
        for way in ("sparse", "local")
    },
    "precision": {dtype: {"model.compute_dtype": dtype} for dtype in ("float32", "bfloat16")},
}
"""Name -> arms, each with the settings that make it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--lr", type=float, help="default: the recipe's")
    parser.add_argument("--jobs", type=int, default=2, help="Runs at a time, one thread each.")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = itertools.product(range(options.seeds), STUDIES[options.study])
        list(pool.map(lambda job: train(options, *job), jobs))
    summary = {arm: summarise(options, arm) for arm in STUDIES[options.study]}
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(table(summary))


def run_dir(options: argparse.Namespace, seed: int, arm: str) -> Path:
    return options.out / f"{arm.replace(', ', '-')}-{seed}"


def train(options: argparse.Namespace, seed: int, arm: str) -> None:
    folder = run_dir(options, seed, arm)
    settings = {
        "training.seed": seed,
        "training.steps": options.steps,
        "training.threads": 1,
        "evaluation.every": max(1, options.steps // 2),
        "evaluation.at_start": "false",
        "evaluation.problems": options.problems,
        "checkpoint.every": 0,
        "checkpoint.keep_last": 1,
        **({} if options.lr is None else {"optim.lr": options.lr}),
        **STUDIES[options.study][arm],
    }
    flags = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [
        *(sys.executable, "-m", "forkpoint", "train", "lab_game", *flags),
        *("--run-dir", str(folder), *(["--resume"] if folder.exists() else [])),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
    print(f"{folder.name} done", flush=True)


def summarise(options: argparse.Namespace, arm: str) -> dict[str, Any]:
    """Means over seeds with Student's 95 % interval, and each seed's curve."""
    seeds = [lines(run_dir(options, seed, arm)) for seed in range(options.seeds)]
    rewards = [[line["reward/mean"] for line in run if "reward/mean" in line] for run in seeds]
    middle = options.steps // 2
    return {
        "accuracy_middle": interval([_accuracy(run, middle) for run in seeds]),
        "accuracy_end": interval([_accuracy(run, options.steps) for run in seeds]),
        "reward_last_5": interval([statistics.mean(r[-5:]) for r in rewards]),
        "petaflops": interval([sum(x.get("work/flops", 0) for x in run) / 1e15 for run in seeds]),
        "truncated_end": interval([run[-1]["completion/truncated_fraction"] for run in seeds]),
        "weights_changed": interval(
            [changed(run_dir(options, seed, arm)) for seed in range(options.seeds)]
        ),
        "rewards": rewards,
        "flops": [[line.get("work/flops", 0.0) for line in run if line["step"]] for run in seeds],
    }


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def changed(folder: Path) -> float:
    """The share of weights that differ from the shipped policy's."""
    (last,) = (folder / "checkpoints").glob("step_*")
    before, after = (
        load_file(path / "model.safetensors") for path in (BASE_POLICIES["lab:game"], last)
    )
    moved = sum(int((after[name] != before[name]).sum()) for name in before)
    return moved / sum(tensor.numel() for tensor in before.values())


def _accuracy(run: list[dict[str, Any]], step: int) -> float:
    return next(line["eval/accuracy"] for line in run if line["step"] == step)


def interval(values: list[float]) -> dict[str, Any]:
    """mean +- t_{n-1} s / sqrt(n)."""
    mean = statistics.mean(values)
    half = 0.0
    if len(values) > 1:
        error = statistics.stdev(values) / len(values) ** 0.5
        half = float(student.ppf(0.975, len(values) - 1)) * error
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": values}


def table(summary: dict[str, Any]) -> str:
    columns = (
        *("accuracy_middle", "accuracy_end", "reward_last_5", "truncated_end", "petaflops"),
        "weights_changed",
    )
    rows = [f"| arm | {' | '.join(columns)} |", "|" + " --- |" * (len(columns) + 1)]
    for arm, found in summary.items():
        cells = [
            f"{found[c]['mean']:.3g} [{found[c]['low']:.3g}, {found[c]['high']:.3g}]"
            for c in columns
        ]
        rows.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
