"""The paper's selection on plain tensors, for anyone's training loop."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forkpoint.errors import SelectionError
from forkpoint.selection.candidates import Candidates
from forkpoint.selection.rules import top

if TYPE_CHECKING:
    import torch.distributed as dist


def select_tokens(
    entropies: Tensor,
    mask: Tensor | None = None,
    keep_fraction: float = 0.2,
    *,
    group: "dist.ProcessGroup | None" = None,
) -> Tensor:
    """Which tokens are the forks: exactly k = ceil(keep_fraction * n) of the n in the mask.

    Those of highest entropy; equal ones go by their place, rows first. All tokens that are passed
    in compete with each other: pass the whole batch of a step, not a micro-batch of it. With a
    process group, the tokens of all its processes do, and each process gets its own.

    Example: ``select_tokens(torch.tensor([[0.1, 2.0], [0.5, 0.0]]), keep_fraction=0.5)`` is
    ``[[False, True], [True, False]]``.

    Args:
        entropies: nats, of any shape: [B, L] padded or [T] packed.
        mask: bool of the same shape, the tokens that compete; None: all of them.
        group: of ``torch.distributed``, such as ``torch.distributed.group.WORLD``. All of its
            processes must call; equal entropies go by the process's rank first.

    Returns:
        bool of the same shape, on the same device.

    Raises:
        SelectionError: the shapes differ, the fraction is not in (0, 1], or an entropy that
            competes is not finite.
    """
    if mask is None:
        mask = torch.ones_like(entropies, dtype=torch.bool)
    if mask.shape != entropies.shape:
        raise SelectionError(
            f"entropies of shape {tuple(entropies.shape)} and a mask of {tuple(mask.shape)}"
        )
    if not 0 < keep_fraction <= 1:
        raise SelectionError(f"keep_fraction = {keep_fraction} is not in (0, 1]")
    places_N = mask.flatten().bool().nonzero().flatten()
    mine_N = entropies.detach().flatten().float()[places_N]
    every, own = ([mine_N], 0) if group is None else _of_all(mine_N, group)
    entropies_N = torch.cat(every).cpu()
    if not entropies_N.isfinite().all():
        raise SelectionError("an entropy that competes is not finite")
    kept = torch.zeros(mask.numel(), dtype=torch.bool)
    if len(entropies_N):
        sizes = [len(one) for one in every]
        zeros_N = torch.zeros(len(entropies_N))
        candidates = Candidates(
            entropies_N=entropies_N,
            sequence_ids_N=torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
            positions_N=torch.cat([torch.arange(size) for size in sizes]),
            advantages_N=zeros_N,
            logprobs_N=zeros_N,
            keep_fraction=keep_fraction,
        )
        kept[places_N.cpu()] = top(candidates).split(sizes)[own] > 0
    return kept.view(mask.shape).to(entropies.device)


def _of_all(mine_N: Tensor, group: "dist.ProcessGroup") -> tuple[list[Tensor], int]:
    """What each process of a group gave, in the order of ranks, and this process's rank."""
    import torch.distributed as dist

    size = torch.tensor([len(mine_N)], device=mine_N.device)
    sizes = [torch.zeros_like(size) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, size, group=group)
    counts = [int(one) for one in sizes]
    padded = torch.nn.functional.pad(mine_N, (0, max(counts) - len(mine_N)))
    every = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(every, padded, group=group)
    found = [one[:count] for one, count in zip(every, counts, strict=True)]
    return found, dist.get_rank(group)
