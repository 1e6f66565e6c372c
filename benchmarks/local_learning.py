"""Does the local gradient learn as well as the exact one? Laboratory, several seeds.

    python -m benchmarks.local_learning --out runs/local --seeds 5

Trains the shipped policy by exact (sparse) and by local gradients, on the forks (20 %) and on all
tokens, with the same seeds; then writes ``summary.json`` and prints a table: held-out accuracy and
reward over seeds, and the training's floating-point operations. Runs that are finished are kept.
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

from scipy.stats import t as student

ARMS = {
    "exact, forks": ("sparse", 0.2),
    "local, forks": ("local", 0.2),
    "exact, all": ("sparse", 1.0),
    "local, all": ("local", 1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=2, help="Runs at a time, one thread each.")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = itertools.product(range(options.seeds), ARMS)
        list(pool.map(lambda job: train(options, *job), jobs))
    summary = {arm: summarise(options, arm) for arm in ARMS}
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(table(summary))


def run_dir(options: argparse.Namespace, seed: int, arm: str) -> Path:
    return options.out / f"{arm.replace(', ', '-')}-{seed}"


def train(options: argparse.Namespace, seed: int, arm: str) -> None:
    gradient, keep_fraction = ARMS[arm]
    folder = run_dir(options, seed, arm)
    settings = {
        "training.seed": seed,
        "training.steps": options.steps,
        "training.gradient": gradient,
        "training.threads": 1,
        "selection.keep_fraction": keep_fraction,
        "evaluation.every": 8,
        "evaluation.at_start": "false",
        "evaluation.problems": options.problems,
        "checkpoint.every": 0,
        "checkpoint.keep_last": 1,
    }
    flags = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [
        *(sys.executable, "-m", "forkpoint", "train", "recipes/lab_demo.toml", *flags),
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
        "rewards": rewards,
        "flops": [[line.get("work/flops", 0.0) for line in run if line["step"]] for run in seeds],
    }


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


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
    columns = ("accuracy_middle", "accuracy_end", "reward_last_5", "truncated_end", "petaflops")
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
