"""All of a plan, as one value."""

from dataclasses import asdict, dataclass

from forkpoint.config import RunConfig
from forkpoint.plan.gpus import Gpu
from forkpoint.plan.memory import Memory, memory, pass_tokens
from forkpoint.plan.sizes import Sizes, sizes_of
from forkpoint.plan.step import Assumed, StepTokens, step_tokens
from forkpoint.plan.traffic import Traffic, traffic
from forkpoint.plan.work import Operations, operations

SPARE = 0.9
"""Of a GPU's memory, what tensors can take: the rest is CUDA's, and what lies between blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a recipe takes on some GPUs."""

    gpus: int
    memory_gb: float
    """Of one GPU."""
    flat: float
    sizes: Sizes
    step: StepTokens
    memory: Memory
    fits: bool
    operations: Operations
    seconds: dict[str, float]
    """Each of ``operations`` on all GPUs."""
    traffic: Traffic


def planned(
    config: RunConfig, assumed: Assumed, gpus: int, gpu: Gpu, *, device: str = "cuda"
) -> Plan:
    """
    Args:
        device: ``cuda``, or ``cpu`` for processes without one.

    Raises:
        ModelError: the model's config cannot be read.
    """
    step = step_tokens(config, assumed)
    sizes = sizes_of(config.model, pass_tokens(config, step))
    held = memory(config, sizes, step, gpus, device=device)
    work = operations(config, sizes, step)
    rate = gpus * gpu.peak_flops
    seconds = {
        name: number
        / rate
        / (assumed.sampling_utilisation if name == "sampling" else assumed.utilisation)
        for name, number in asdict(work).items()
    }
    return Plan(
        gpus=gpus,
        memory_gb=gpu.memory_gb,
        flat=assumed.flat,
        sizes=sizes,
        step=step,
        memory=held,
        fits=held.peak <= SPARE * 1e9 * gpu.memory_gb,
        operations=work,
        seconds=seconds,
        traffic=traffic(config, sizes, step, gpus),
    )
