"""What of a recipe can run on this machine."""

import importlib.util
import os
import shutil
from pathlib import Path

import torch

from forkpoint.config import RunConfig
from forkpoint.config.stages import DataTaskConfig, GymTaskConfig
from forkpoint.environment import EXTRAS, package_version
from forkpoint.errors import ForkpointError
from forkpoint.plan.gpus import Gpu
from forkpoint.plan.report import SPARE, planned
from forkpoint.plan.step import Assumed


def missing_here(config: RunConfig) -> list[str]:
    """What it needs and is not here, each in some words; empty if it can run.

    Memory is planned for all GPUs of this machine, or for one process in its memory without one.
    """
    return [*_packages(config), *_files(config), *_memory(config)]


def _packages(config: RunConfig) -> list[str]:
    wanted = set()
    if isinstance(config.task, DataTaskConfig) and not _is_file(config.task.path):
        wanted.add("hub")
    if isinstance(config.task, GymTaskConfig):
        wanted.add("gym")
    if any(reward.type == "math" for reward in config.rewards):
        wanted.add("math")
    if config.model.lora is not None:
        wanted.add("lora")
    found = [
        f"pip install 'forkpoint[{extra}]'"
        for extra in sorted(wanted)
        if package_version(EXTRAS[extra][0]) is None
    ]
    if any(reward.type == "code" for reward in config.rewards) and not shutil.which("bwrap"):
        found.append("bubblewrap (apt-get install bubblewrap)")
    vllm = config.rollout.vllm
    if config.rollout.engine == "vllm" and not vllm.servers:
        own = vllm.python is None and importlib.util.find_spec("vllm") is None
        if own or (vllm.python is not None and not Path(vllm.python).exists()):
            found.append("a Python with vLLM (rollout.vllm.python), or rollout.vllm.servers")
    return found


def _files(config: RunConfig) -> list[str]:
    found = []
    if config.model.path.startswith("models/") and not Path(config.model.path).is_dir():
        found.append(f"the model in {config.model.path}")
    task = config.task
    if isinstance(task, DataTaskConfig) and _is_file(task.path) and not Path(task.path).exists():
        found.append(f"the file {task.path}")
    return found


def _is_file(path: str) -> bool:
    return Path(path).suffix in (".jsonl", ".parquet") or path.startswith((".", "/", "~"))


def _memory(config: RunConfig) -> list[str]:
    count = torch.cuda.device_count()
    if count:
        have = torch.cuda.get_device_properties(0).total_memory
    else:
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpu = Gpu(memory_gb=have / 1e9, peak_flops=1.0)
    try:
        found = planned(config, Assumed(), max(1, count), gpu, device="cuda" if count else "cpu")
    except ForkpointError as error:
        return [str(error)]
    if found.fits:
        return []
    where = f"each of {count} GPUs" if count else "memory"
    return [
        f"{found.memory.peak / 1e9:.0f} GB of {where}, {SPARE * have / 1e9:.0f} GB can be used "
        "(forkpoint plan says for what)"
    ]
