"""All stages in turn: a numerics, b the head, c a training step beside TRL's, d sampling beside
``generate``.

A line of JSON a measure, printed at once and kept in a file. Nothing is downloaded: the models have
random weights, or are the laboratory's policy. TRL is measured where it is installed.
"""

import argparse
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.device import Device
from benchmarks.gpu.head import head
from benchmarks.gpu.lines import Lines
from benchmarks.gpu.numerics import numerics
from benchmarks.gpu.sampling import sampling
from benchmarks.gpu.steps import steps
from forkpoint.environment import environment

RESULTS = Path(__file__).parents[1] / "results"

STAGES: dict[str, Callable[[Lines, Device], None]] = {
    "a": numerics,
    "b": head,
    "c": steps,
    "d": sampling,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if nothing failed and no number is wrong; what was skipped or took too much memory is no
    failure."""
    options = _parse(arguments)
    device = Device(options.device, tiny=options.tiny)
    facts = about(device)
    out = options.out or RESULTS / f"gpu-{_slug(facts['device'])}.json"
    out.parent.mkdir(parents=True, exist_ok=True)

    def keep(told: list[dict[str, Any]]) -> None:
        out.write_text(json.dumps({**facts, "lines": told}, indent=1) + "\n")

    print(json.dumps(facts), flush=True)
    lines = Lines(device, options.minutes, keep)
    for name in options.stages.split(","):
        lines.stage = name
        lines.guard(lambda name=name: STAGES[name](lines, device))
    return 0 if lines.good else 1


def about(device: Device) -> dict[str, Any]:
    """When, where and with what."""
    facts = environment()
    kept = ("device", "python", "platform", "versions", "git", "threads")
    return {
        "date": date.today().isoformat(),
        **{key: facts[key] for key in kept},
        "device": torch.cuda.get_device_name() if device.is_cuda else "cpu",
        "memory_gb": round(device.free_gb(), 1) if device.is_cuda else None,
        "driver": _driver() if device.is_cuda else None,
        "cuda": torch.version.cuda,
        "tiny": device.tiny,
    }


def _driver() -> str | None:
    """The version of NVIDIA's driver, if its tool is there to be asked."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().split("\n")[0]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="Toy sizes: does it run at all?")
    parser.add_argument("--minutes", type=float, default=8.0, help="What will not fit is skipped.")
    parser.add_argument("--out", type=Path, help="Default: benchmarks/results/gpu-DEVICE.json.")
    parser.add_argument("--stages", default=",".join(STAGES), help="Some of them: a,c")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.stages.split(",")) - set(STAGES)):
        parser.error(f"no stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; to try the benchmark: --device cpu --tiny")
    return options
