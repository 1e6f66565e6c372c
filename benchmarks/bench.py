"""Every benchmark side by side, in one run: ``make bench``.

Each measurement is a process of its own, so that peaks of memory are its own. What is compared is
run in turns; medians and ratios come out, in ``benchmarks/results/latest.json`` (headline, raw
numbers) and ``benchmarks/results/latest.md`` (tables).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.tables import markdown
from forkpoint.environment import environment

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BATCH_SIZES = (4, 8, 16)
EQUAL_SEQUENCES = 8
"""Sequences in one pass where memory is compared."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--turns", type=int, default=2, help="Runs of each side of a comparison.")
    options = parser.parse_args()
    started = time.perf_counter()
    raw: dict[str, Any] = {"matrix_product_gflops": [matrix_product_rate()]}
    raw["trl_batch_sizes"] = {
        str(size): run("trl_step", "--workload", "half_zero", "--batch-size", size)
        for size in BATCH_SIZES
    }
    fastest = min(BATCH_SIZES, key=lambda s: raw["trl_batch_sizes"][str(s)]["seconds"][0])
    raw["steps"] = {name: smollm2(name, fastest, options.turns) for name in COMPARED}
    raw["steps"]["half_zero"]["trl"]["seconds"] += raw["trl_batch_sizes"][str(fastest)]["seconds"]
    raw["memory"] = {
        way: run("ours", "--gradient", way, "--sequences", EQUAL_SEQUENCES, "--repeats", 1)
        for way in ("dense", "sparse", "local")
    }
    raw["keep_all"] = turns(
        {way: ours(way, "no_zero", "--keep-fraction", 1.0) for way in ("dense", "sparse")}, 1
    )
    raw["wide"] = turns({**wide_ours("dense"), **wide_ours("sparse"), **wide_ours("local")}, 1)
    raw["wide_trl"] = run("trl_step", "--model", "wide", "--workload", "no_zero", "--batch-size", 4)
    raw["matrix_product_gflops"].append(matrix_product_rate())
    raw["gradient_relative_error"] = run("agreement")
    raw["sampling"] = run("sampling")
    raw["growth"] = run("growth")
    raw["matrix_product_gflops"].append(matrix_product_rate())
    raw["fastest_trl_batch_size"] = fastest
    ratios = headline(raw)
    result = {**ratios, "headline": list(ratios), **about(started), "raw": raw}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "latest.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "latest.md").write_text(markdown(result))
    print(markdown(result))


COMPARED = ("half_zero", "no_zero", "equal")


def smollm2(name: str, batch_size: int, count: int) -> dict[str, Any]:
    """TRL and this package's three ways on one workload."""
    sides = {way: ours(way, name) for way in ("sparse", "local", "dense")}
    sides["local_kept"] = ours("local", name, "--kept")
    trl = ("trl_step", "--workload", name, "--batch-size", batch_size)
    return turns({"trl": trl, **sides}, count if name != "equal" else 1)


def ours(way: str, name: str, *more: Any) -> tuple[Any, ...]:
    repeats = 1 if way == "dense" else 2  # it is the slowest by far
    return ("ours", "--gradient", way, "--workload", name, "--repeats", repeats, *more)


def wide_ours(way: str) -> dict[str, tuple[Any, ...]]:
    return {way: ours(way, "no_zero", "--model", "wide")}


def turns(sides: dict[str, tuple[Any, ...]], count: int) -> dict[str, Any]:
    """Each side's runs, taken in turns, merged: all seconds, the first run's other numbers."""
    merged: dict[str, Any] = {}
    for _ in range(count):
        for name, command in sides.items():
            found = run(*command)
            if name in merged:
                merged[name]["seconds"] += found["seconds"]
            else:
                merged[name] = found
    return merged


def run(module: str, *arguments: Any) -> dict[str, Any]:
    """One measurement in a process of its own; its last line of output is JSON."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    steps = " ".join(f"{s:.2f}" for s in found.get("seconds", ()))
    print(f"{time.perf_counter() - started:6.0f} s  {' '.join(command[2:])}  {steps}", flush=True)
    return found


def matrix_product_rate() -> float:
    """10^9 floating-point operations a second of float32 products, [1024, 1024] x [1024, 2048]."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 2048)
    rates = []
    for _ in range(12):
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        rates.append(10 * 2 * 1024 * 1024 * 2048 / (time.perf_counter() - started) / 1e9)
    return statistics.median(rates)


def headline(raw: dict[str, Any]) -> dict[str, float]:
    """The ratios, from medians."""
    half, none = (raw["steps"][name] for name in ("half_zero", "no_zero"))
    equal_memory = raw["trl_batch_sizes"][str(EQUAL_SEQUENCES)]["memory_gb"]
    sampled = {way: median(values) for way, values in raw["sampling"]["seconds_per_token"].items()}
    wide = raw["wide"]["sparse"]
    rate = 1e9 * statistics.median(raw["matrix_product_gflops"])
    return {
        "trl_over_sparse_time_half_zero": ratio(half, "trl", "sparse"),
        "trl_over_sparse_time_no_zero": ratio(none, "trl", "sparse"),
        "trl_over_sparse_peak_memory": equal_memory / raw["memory"]["sparse"]["memory_gb"],
        "dense_over_sparse_time": ratio(half, "dense", "sparse"),
        "dense_over_sparse_time_no_zero": ratio(none, "dense", "sparse"),
        "dense_over_sparse_time_keep_all": ratio(raw["keep_all"], "dense", "sparse"),
        "sparse_over_local_time": ratio(none, "sparse", "local_kept"),
        "sparse_over_local_time_own_pass": ratio(none, "sparse", "local"),
        "trl_over_sparse_time_152k": median(raw["wide_trl"]["seconds"]) / median(wide["seconds"]),
        "generate_over_engine_time": sampled["generate"] / sampled["engine"],
        "entropy_capture_overhead": capture_overhead(raw["sampling"]["seconds_per_token"]),
        "flop_rate_fraction_152k": wide["work/flops"] / median(wide["seconds"]) / rate,
        "gradient_relative_error": raw["gradient_relative_error"]["sparse"],
    }


def capture_overhead(sampled: dict[str, list[float]]) -> float:
    """The median over pairs of runs, one right after the other, of the same tokens."""
    pairs = zip(sampled["engine"], sampled["blind"], strict=True)
    return statistics.median(seeing / blind for seeing, blind in pairs) - 1


def ratio(sides: dict[str, Any], slow: str, fast: str) -> float:
    return median(sides[slow]["seconds"]) / median(sides[fast]["seconds"])


def median(values: list[float]) -> float:
    return statistics.median(values)


def about(started: float) -> dict[str, Any]:
    """When, where and with what."""
    facts = environment()
    return {
        "date": date.today().isoformat(),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "versions": facts["versions"],
        "machine": {k: facts[k] for k in ("cpu_count", "cpu_capability", "threads", "platform")},
        "git": facts["git"],
    }


if __name__ == "__main__":
    main()
