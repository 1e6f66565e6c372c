"""Both cheaper ways under FSDP2 on two processes: one process's gradient, though work is uneven.

The scale-out is not built; this holds the door open (see ARCHITECTURE.md).
"""

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from forkpoint.config import parse_config
from forkpoint.losses import policy_loss
from forkpoint.losses.policy_loss import needed_rows
from forkpoint.policy import PolicyModule
from forkpoint.types import TokenBatch
from tests.conftest import make_batch, tiny_model
from tests.equivalence.test_gradients import prepared

CONFIG = parse_config({"selection": {"keep_fraction": 0.3}})
PASS_TOKENS = 24
"""So few that the ranks have different numbers of passes."""


def backward(policy: PolicyModule, batch: TokenBatch, share: list[int], passes: int) -> None:
    """The gradient of some sequences in exactly ``passes`` passes, empty ones at the end."""
    part = batch.take(share)
    wanted = needed_rows(part, CONFIG.loss)
    cut = policy.passes(part, wanted, max_tokens=PASS_TOKENS, max_sequences=2)
    assert len(cut) <= passes
    for sequences in cut:
        micro = part.take(sequences)
        stats = policy(micro, wanted[part.rows_of(sequences)])
        policy_loss(micro, stats, CONFIG.loss).loss.backward()
    nothing = part.take([0])
    for _ in range(passes - len(cut)):  # nothing to do here, but the others wait for this rank
        stats = policy(nothing, torch.zeros(nothing.num_tokens, dtype=torch.bool))
        policy_loss(nothing, stats, CONFIG.loss).loss.backward()


def worker(rank: int, port: int, gradient: str, found: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    batch = prepared(make_batch(), CONFIG)
    model = tiny_model(tied=True)
    policy = PolicyModule(model, gradient=gradient, temperature=1.0)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    backward(policy, batch, [[0, 1, 2, 3, 4], [5, 6, 7, 8]][rank], passes=4)
    flat = []
    for parameter in model.parameters():
        assert isinstance(parameter.grad, DTensor)
        flat.append(parameter.grad.full_tensor().flatten() * 2)  # FSDP means over ranks
    if rank == 0:
        found["gradient"] = torch.cat(flat).tolist()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["sparse", "local"])
def test_two_sharded_ranks_have_one_process_gradient(gradient: str) -> None:
    batch = prepared(make_batch(), CONFIG)
    model = tiny_model(tied=True)
    policy = PolicyModule(model, gradient=gradient, temperature=1.0)
    backward(policy, batch, list(range(9)), passes=9)
    exact = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    with mp.Manager() as manager:
        found = manager.dict()
        mp.spawn(worker, args=(free_port(), gradient, found), nprocs=2)
        got = torch.tensor(found["gradient"])
    assert (got - exact).norm() / exact.norm() < 1e-5


def free_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
