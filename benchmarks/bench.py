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
from collections.abc import Sequence
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
COMPARED = ("half_zero", "no_zero", "equal")
"""Workloads on which every side runs."""
ALONE = ("agreement", "sampling", "growth", "dial", "without_flat", "in_trl")
"""Parts whose numbers are compared with no other part's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--again",
        choices=ALONE,
        help="Measure this part anew, alone, into the result that is there.",
    )
    options = parser.parse_args()
    if options.again:
        again(options.again, options.out)
    else:
        whole(options.out)


def whole(out: Path) -> None:
    """Every part, in one run."""
    started = time.perf_counter()
    raw: dict[str, Any] = {"matrix_product_gflops": [matrix_product_rate()]}
    raw["trl_batch_sizes"] = {
        str(size): run("trl_step", "--workload", "half_zero", "--batch-size", size)
        for size in BATCH_SIZES
    }
    fastest = min(BATCH_SIZES, key=lambda s: raw["trl_batch_sizes"][str(s)]["seconds"][0])
    raw["fastest_trl_batch_size"] = fastest
    raw["steps"] = {name: smollm2(name, fastest) for name in COMPARED}
    raw["steps"]["half_zero"]["trl"]["seconds"] += raw["trl_batch_sizes"][str(fastest)]["seconds"]
    raw["memory"] = {
        way: run("ours", "--gradient", way, "--sequences", EQUAL_SEQUENCES, "--repeats", 1)
        for way in ("dense", "sparse")
    }
    raw["keep_all"] = turns(
        {way: ours(way, "no_zero", "--keep-fraction", 1.0) for way in ("dense", "sparse")}
    )
    raw["wide"] = turns({**wide_ours("dense"), **wide_ours("sparse")})
    raw["wide_trl"] = run("trl_step", "--model", "wide", "--workload", "no_zero", "--batch-size", 4)
    raw["matrix_product_gflops"].append(matrix_product_rate())
    raw |= {part: alone(part, fastest) for part in ALONE}
    raw["matrix_product_gflops"].append(matrix_product_rate())
    write(raw, about(started), out)


def again(part: str, out: Path) -> None:
    """One part anew; the result says when and with which code."""
    result = json.loads((out / "latest.json").read_text())
    started = time.perf_counter()
    raw = result["raw"]
    raw |= {part: alone(part, raw["fastest_trl_batch_size"])}
    told = {k: result[k] for k in ("date", "minutes", "versions", "machine", "git")}
    parts = result.get("again", {}) | {part: about(started)}
    write(raw, {**told, "again": parts}, out)


def write(raw: dict[str, Any], told: dict[str, Any], out: Path) -> None:
    """``latest.json`` and ``latest.md``; ``told``: when, where and with what ``raw`` was made."""
    ratios = headline(raw)
    result = {**ratios, "headline": list(ratios), **told, "raw": raw}
    out.mkdir(parents=True, exist_ok=True)
    (out / "latest.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "latest.md").write_text(markdown(result))
    print(markdown(result))


def alone(part: str, batch_size: int) -> dict[str, Any]:
    """One of ``ALONE``: a program of that name, or a comparison of two."""
    comparisons = {"without_flat": without_flat, "in_trl": in_trl, "dial": dial}
    return comparisons[part](batch_size) if part in comparisons else run(part)


def without_flat(batch_size: int) -> dict[str, Any]:
    """TRL given only the groups of ``half_zero`` that teach, as peers that filter give it, and
    sparse on all of them: what selection adds to leaving out flat groups."""
    trl = ("trl_step", "--workload", "half_zero", "--without-flat", "--batch-size", batch_size)
    return turns({"trl": trl, "sparse": ours("sparse", "half_zero")}, ("trl", "sparse"))


def dial(batch_size: int) -> dict[str, Any]:
    """The local gradient at some settings of its dial, beside all others."""
    sides = {
        "trl": ("trl_step", "--workload", "no_zero", "--batch-size", batch_size),
        "dense": ours("dense", "no_zero"),
        "sparse": ours("sparse", "no_zero"),
        "local_50": ours("local", "no_zero", "--live-fraction", 0.5),
        "local_35": ours("local", "no_zero"),
        "local_forks": ours("local", "no_zero", "--live", "forks"),
        "local_35_kept": ours("local", "no_zero", "--kept"),
        "local_forks_kept": ours("local", "no_zero", "--live", "forks", "--kept"),
    }
    return turns(sides, [name for name in sides if name not in ("trl", "dense")])


def in_trl(batch_size: int) -> dict[str, Any]:
    """TRL's trainer and this package's subclass of it, by the same passes on the same batches."""
    found = {}
    for name in ("half_zero", "no_zero"):
        step = ("trl_step", "--workload", name, "--batch-size", batch_size)
        found[name] = turns({"trl": step, "forking": (*step, "--forking")}, ("forking",))
    return found


def smollm2(name: str, batch_size: int) -> dict[str, Any]:
    """TRL and this package's two exact ways on one workload."""
    sides = {
        "trl": ("trl_step", "--workload", name, "--batch-size", batch_size),
        **{way: ours(way, name) for way in ("sparse", "dense")},
    }
    # The choice of its batch size gives TRL a second run of half_zero; equal is no headline.
    return turns(sides, ("trl", "sparse") if name == "no_zero" else ())


def ours(way: str, name: str, *more: Any) -> tuple[Any, ...]:
    repeats = 1 if way == "dense" else 2  # it is the slowest by far
    return ("ours", "--gradient", way, "--workload", name, "--repeats", repeats, *more)


def wide_ours(way: str) -> dict[str, tuple[Any, ...]]:
    return {way: ours(way, "no_zero", "--model", "wide")}


def turns(sides: dict[str, tuple[Any, ...]], twice: Sequence[str] = ()) -> dict[str, Any]:
    """Each side run once, then ``twice`` once more: all seconds, the first run's other numbers."""
    merged: dict[str, Any] = {}
    for name in (*sides, *twice):
        found = run(*sides[name])
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
    sampling = raw["sampling"]
    wide = raw["wide"]["sparse"]
    rate = 1e9 * statistics.median(raw["matrix_product_gflops"])
    filtered = {}
    if sides := raw.get("without_flat"):
        filtered["trl_without_flat_over_sparse_time_half_zero"] = ratio(sides, "trl", "sparse")
    if in_trl := raw.get("in_trl"):
        for name, sides in in_trl.items():
            filtered[f"trl_over_forking_time_{name}"] = ratio(sides, "trl", "forking")
        sides = in_trl["no_zero"]
        memory = sides["trl"]["memory_gb"] / sides["forking"]["memory_gb"]
        filtered["trl_over_forking_peak_memory"] = memory
    return {
        "trl_over_sparse_time_half_zero": ratio(half, "trl", "sparse"),
        **filtered,
        "trl_over_sparse_time_no_zero": ratio(none, "trl", "sparse"),
        "trl_over_sparse_peak_memory": equal_memory / raw["memory"]["sparse"]["memory_gb"],
        "dense_over_sparse_time": ratio(half, "dense", "sparse"),
        "dense_over_sparse_time_no_zero": ratio(none, "dense", "sparse"),
        "dense_over_sparse_time_keep_all": ratio(raw["keep_all"], "dense", "sparse"),
        "sparse_over_local_time": ratio(raw["dial"], "sparse", "local_35_kept"),
        "sparse_over_local_time_own_pass": ratio(raw["dial"], "sparse", "local_35"),
        "trl_over_sparse_time_152k": median(raw["wide_trl"]["seconds"]) / median(wide["seconds"]),
        "generate_over_engine_time": sum(sampling["generate_seconds"])
        / sum(sampling["engine_seconds"]),
        "entropy_capture_overhead": capture_overhead(sampling),
        "flop_rate_fraction_152k": wide["work/flops"] / median(wide["seconds"]) / rate,
        "gradient_relative_error": raw["agreement"]["sparse"],
    }


def capture_overhead(sampling: dict[str, list[float]]) -> float:
    """Seconds for the entropies over those of everything else in the same batch: the median."""
    pairs = zip(sampling["capture_seconds"], sampling["engine_seconds"], strict=True)
    return statistics.median(capture / (whole - capture) for capture, whole in pairs)


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
