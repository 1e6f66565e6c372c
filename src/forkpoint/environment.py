"""What a run ran on: versions, threads, device, source revision."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CORE_PACKAGES = (
    "forkpoint", "torch", "transformers", "safetensors", "numpy", "scipy", "pydantic", "cyclopts",
    "rich", "pyarrow", "jinja2", "pebble", "altair", "vl-convert-python",
)  # fmt: skip

EXTRAS = {
    "math": ("math-verify", "rewards.type = 'math'"),
    "gym": ("reasoning-gym", "task.type = 'gym'"),
    "hub": ("datasets", "task.path = a hub id"),
    "gguf": ("gguf", "make smollm2"),
    "lora": ("peft", "model.lora"),
    "tracking": ("trackio", "tracking.to (wandb and tensorboard come with it)"),
    "trl": ("trl", "comparisons with TRL in the tests"),
}
"""Extra -> (its package, what needs it)."""


def environment() -> dict[str, Any]:
    """The contents of a run's env.json."""
    import torch

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: package_version(name) for name in CORE_PACKAGES},
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "git": git_revision(Path(__file__).parent),
    }


def package_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_revision(folder: Path) -> str | None:
    """``<commit>`` or ``<commit>+changes`` of the checkout that ``folder`` is part of, or None."""
    try:
        _git(folder, "ls-files", "--error-unmatch", ".")  # not installed into someone's checkout
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=5,
    )
    return done.stdout.strip()
