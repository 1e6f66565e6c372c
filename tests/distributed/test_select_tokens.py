"""``select_tokens`` over a process group is the selection of all its processes' tokens at once."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

import forkpoint
from forkpoint.errors import SelectionError

# The third process has nothing; 0.5 is there three times, and two of the five best are tied.
PARTS = [
    (torch.tensor([[0.1, 0.9, 0.5], [0.5, 0.0, 0.3]]), torch.tensor([[1, 1, 1], [1, 0, 1]]).bool()),
    (torch.tensor([[0.5, 0.8], [0.7, 0.2]]), torch.tensor([[1, 1], [0, 1]]).bool()),
    (torch.tensor([[0.6]]), torch.tensor([[0]]).bool()),
]


def _select(rank: int, folder: str, broken: bool) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(PARTS)
    )
    entropies, mask = PARTS[rank]
    if broken and rank == 1:
        entropies = entropies.clone()
        entropies[0, 0] = torch.nan
    try:
        kept = forkpoint.select_tokens(entropies, mask, keep_fraction=0.5, group=dist.group.WORLD)
        torch.save(kept, f"{folder}/kept_{rank}.pt")
    except SelectionError as error:
        Path(f"{folder}/error_{rank}").write_text(str(error))
    dist.destroy_process_group()


def test_processes_select_together(tmp_path: Path) -> None:
    spawn(_select, args=(str(tmp_path), False), nprocs=len(PARTS))
    kept = [torch.load(tmp_path / f"kept_{rank}.pt") for rank in range(len(PARTS))]
    # 8 compete, ceil(0.5 * 8) = 4 are kept: 0.9, 0.8, and of three 0.5 the two of the lower rank
    assert kept[0].tolist() == [[False, True, True], [True, False, False]]
    assert kept[1].tolist() == [[False, True], [False, False]]
    assert kept[2].tolist() == [[False]]
    values = torch.cat([entropies[mask] for entropies, mask in PARTS])
    alone = forkpoint.select_tokens(values, keep_fraction=0.5)
    together = torch.cat([k[mask] for k, (_, mask) in zip(kept, PARTS, strict=True)])
    assert torch.equal(alone, together)


def test_an_entropy_that_is_not_finite_is_refused_by_every_process(tmp_path: Path) -> None:
    spawn(_select, args=(str(tmp_path), True), nprocs=len(PARTS))
    for rank in range(len(PARTS)):
        assert "not finite" in (tmp_path / f"error_{rank}").read_text()


@pytest.mark.parametrize("keep_fraction", [0.1, 0.34, 1.0])
def test_without_a_group_a_process_is_alone(keep_fraction: float) -> None:
    entropies, mask = PARTS[0]
    kept = forkpoint.select_tokens(entropies, mask, keep_fraction)
    assert int(kept.sum()) == {0.1: 1, 0.34: 2, 1.0: 5}[keep_fraction]
    assert not kept[~mask].any()
