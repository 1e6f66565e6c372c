"""GPUs by name: memory and dense bfloat16 rate as their vendors publish them."""

from dataclasses import dataclass

from forkpoint.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device."""

    memory_gb: float
    """10^9 bytes."""
    peak_flops: float
    """Dense bfloat16 operations a second, without structured sparsity."""


GPUS = {
    "h100": Gpu(memory_gb=80, peak_flops=989e12),
    "h200": Gpu(memory_gb=141, peak_flops=989e12),
    "a100": Gpu(memory_gb=80, peak_flops=312e12),
    "a100-40": Gpu(memory_gb=40, peak_flops=312e12),
    "l40s": Gpu(memory_gb=48, peak_flops=362e12),
    "rtx4090": Gpu(memory_gb=24, peak_flops=165e12),
}
"""NVIDIA's data sheets."""


def gpu_of(name: str) -> Gpu:
    """
    Raises:
        ConfigError: no such GPU is known.
    """
    if name not in GPUS:
        raise ConfigError(f"--gpu {name}: known are {', '.join(GPUS)}")
    return GPUS[name]
