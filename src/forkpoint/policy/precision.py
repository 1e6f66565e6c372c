"""Float32 parameters, a forward pass in a smaller type.

bfloat16 has 8 bits of mantissa: an update smaller than 1/256 of a weight changes nothing. So
parameters, optimizer moments and sums of gradients are float32 always, and a pass computes with
copies of the weights in ``model.compute_dtype``. That is what FSDP2 does with sharded parameters,
and on one process it is the same mechanism with a world of one.
"""

import atexit
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from forkpoint.errors import ModelError
from forkpoint.policy.body import name_of
from forkpoint.policy.checks import FAULTS, SAME_NATS_16_BIT, first_line, gap_nats
from forkpoint.policy.trial import SHORT, reference_attention, trial_batch, wanted_only

if TYPE_CHECKING:
    from forkpoint.policy.module import PolicyModule


def compute_in(
    policy: "PolicyModule", dtype: torch.dtype, device: torch.device | None = None
) -> None:
    """Let the passes of ``policy`` compute in ``dtype``; its parameters are and stay float32.

    With several processes each holds a part of every parameter, its gradient and its moments on
    ``device``, where a layer at a time arrives whole: the model may be larger than the device.

    In a pass each layer's weights are copied to ``dtype`` when it begins and freed when it ends;
    their gradient arrives in float32 and is added up there. One process does nothing for float32.

    Args:
        device: None: where the model is.

    Raises:
        ModelError: naming the class: it does not run like that, or gives other numbers.
    """
    held = {p.dtype for p in policy.parameters() if not p.requires_grad}
    if policy.ranks.size == 1 and (dtype == torch.float32 or held == {dtype}):
        return  # the frozen weights of adapters are in the type already
    with torch.no_grad():
        expected = _first_pass(policy)
    try:
        _shard(policy, dtype, device or next(policy.parameters()).device)
        gap = gap_nats(_first_pass(policy), expected)
        fault = None if gap <= SAME_NATS_16_BIT else f"its entropies come out {gap:.2g} nats off"
    except torch.OutOfMemoryError:
        raise
    except FAULTS as error:
        fault = first_line(error)
    if fault is not None:
        kind = str(dtype).removeprefix("torch.")
        raise ModelError(
            f"{name_of(policy.model)} cannot compute in {kind} with parameters kept in float32 "
            f"({fault}); use --set model.compute_dtype=float32"
        )


@contextmanager
def unsharded(policy: nn.Module) -> Iterator[None]:
    """Hold all weights in the compute type at once, so that the model can be called by itself.

    For sampling: thousands of small forward passes over weights that do not change.
    """
    parts = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True)


def whole(tensor: Tensor) -> Tensor:
    """A parameter, its gradient or a moment of it as one plain tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], *, keep: Callable[[str], bool]) -> dict[str, Tensor]:
    """Each as one plain tensor on the host. All processes put them together, one at a time.

    A tensor of two names, such as a tied head's weight, stays one tensor.

    Args:
        keep: whether this process wants the tensor of a name.
    """
    found: dict[str, Tensor] = {}
    plain: dict[int, Tensor | None] = {}
    for name, tensor in tensors.items():
        if id(tensor) not in plain:
            put_together = whole(tensor).detach()
            plain[id(tensor)] = put_together.cpu() if keep(name) else None
        if (one := plain[id(tensor)]) is not None:
            found[name] = one
    return found


def wrapped_layers(model: nn.Module) -> list[str]:
    """The names of the layers that ``compute_in`` has divided among the processes."""
    return [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A plain tensor of a parameter's shape, the same in all processes, laid out as it is."""
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(tensor, mesh, placements, src_data_rank=None)  # each cuts its own
    return tensor


def _shard(policy: "PolicyModule", dtype: torch.dtype, device: torch.device) -> None:
    model = policy.model
    settings: dict[str, Any] = {
        "mesh": _world(device),
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=dtype,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # a model's own mixture of types is left as it is
        ),
        "reshard_after_forward": True,  # between passes every parameter is the float32 one
    }
    for layer in layers_of(model):
        fully_shard(layer, **settings)
    fully_shard(policy, **settings)
    for module in policy.modules():
        if isinstance(module, FSDPModule) and policy.ranks.size > 1:
            # The processes' shares of a loss add up: no mean, and no factor, which gloo cannot do.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def _first_pass(policy: "PolicyModule") -> tuple[Tensor, Tensor]:
    """(ln p, H) of a few tokens; their gradient, if one is taken, shows what cannot run.

    FSDP takes the first module that runs for the outermost, so it has to be ``policy``.
    """
    batch, wanted_T = trial_batch(policy.model, SHORT)
    with reference_attention(policy.model):
        stats = policy(batch, wanted_T)
        if torch.is_grad_enabled():
            (stats.logprobs_R.sum() + stats.entropies_R.sum()).backward()
    policy.zero_grad()
    logprobs_R, entropies_R = wanted_only(stats, wanted_T)
    return logprobs_R.detach(), entropies_R.detach()


def _world(device: torch.device) -> DeviceMesh:
    """All processes of the run: one, unless it was started as a part of more."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # FSDP puts parameters on the current device
    if not dist.is_initialized():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=dist.HashStore(),  # pyright: ignore[reportPrivateImportUsage]
            rank=0,
            world_size=1,
        )
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    return init_device_mesh(device.type, (dist.get_world_size(),))


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The modules that transformers keeps on one device: decoder layers.

    One that shares a parameter with another part of the model belongs to the whole.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    inside = {id(child) for layer in layers for child in layer.modules() if child is not layer}
    layers = [layer for layer in layers if id(layer) not in inside]
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    return [layer for layer in layers if all(uses[id(p)] == 1 for p in layer.parameters())]
