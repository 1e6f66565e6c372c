"""The paper's selection on plain tensors, for anyone's training loop."""

import torch
from torch import Tensor

from forkpoint.errors import SelectionError
from forkpoint.selection.candidates import Candidates
from forkpoint.selection.rules import top


def select_tokens(
    entropies: Tensor, mask: Tensor | None = None, keep_fraction: float = 0.2
) -> Tensor:
    """Which tokens are the forks: exactly k = ceil(keep_fraction * n) of the n in the mask.

    Those of highest entropy; equal ones go by their place, rows first. All tokens that are passed
    in compete with each other: pass the whole batch of a step, not a micro-batch of it.

    Example: ``select_tokens(torch.tensor([[0.1, 2.0], [0.5, 0.0]]), keep_fraction=0.5)`` is
    ``[[False, True], [True, False]]``.

    Args:
        entropies: nats, of any shape: [B, L] padded or [T] packed.
        mask: bool of the same shape, the tokens that compete; None: all of them.

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
    places_N = mask.flatten().bool().nonzero().flatten().cpu()
    entropies_N = entropies.detach().flatten().float().cpu()[places_N]
    if not entropies_N.isfinite().all():
        raise SelectionError("an entropy that competes is not finite")
    kept = torch.zeros(mask.numel(), dtype=torch.bool)
    if len(places_N):
        zeros_N = torch.zeros(len(places_N))
        candidates = Candidates(
            entropies_N=entropies_N,
            sequence_ids_N=zeros_N.long(),
            positions_N=places_N,
            advantages_N=zeros_N,
            logprobs_N=zeros_N,
            keep_fraction=keep_fraction,
        )
        kept[places_N] = top(candidates) > 0
    return kept.view(mask.shape).to(entropies.device)
