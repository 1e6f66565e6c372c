"""The live set: which positions of a row run with gradient where it is not to be exact.

The positions that predict wanted tokens always do. Others are added until they are a share of the
row: best those that the wanted ones look at (``policy.watch``), for it is through their keys and
values that most of the gradient flows.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from forkpoint.batching.tree import NOTHING, TreeRows


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSet:
    """The dial of the local gradient."""

    kind: Literal["forks", "looked_at", "random", "all"] = "looked_at"
    """``forks``: no other positions; ``looked_at``: those with the highest scores; ``random``: any,
    a control; ``all``: every position, which is the exact gradient."""
    fraction: float = 0.35
    """Of a row's positions that are live; the wanted ones all are, even if they are more."""
    first_hop: bool = True
    """Carry the gradients of the constant keys and values into the weights that made them."""
    keys_gb: float = 4.0
    """Without the first hop, keys and values that are kept for the next update, in 10^9 bytes."""
    stale_keys: bool = False
    """Read them in a step's later updates, too, whose weights are no longer theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Some columns of each row, side by side: S slots a line, some of them empty."""

    columns_BS: Tensor
    """int64; an empty slot repeats column 0."""
    filled_BS: Tensor
    """bool."""
    slot_BL: Tensor
    """int64, the slot of a column; of those that are not among them, any."""

    def take(self, values_BL: Tensor) -> Tensor:
        """What stands in the slots' columns, of a value for each column: [lines, S, ...]."""
        index = self.columns_BS.view(*self.columns_BS.shape, *[1] * (values_BL.ndim - 2))
        return values_BL.gather(1, index.expand(-1, -1, *values_BL.shape[2:]))


def joined(first: Slots, second: Slots) -> Slots:
    """The slots of both, in this order, as keys."""
    pairs = ((getattr(x, name) for x in (first, second)) for name in ("columns_BS", "filled_BS"))
    columns_BS, filled_BS = (torch.cat(list(pair), dim=1) for pair in pairs)
    return Slots(columns_BS=columns_BS, filled_BS=filled_BS, slot_BL=first.slot_BL)


def slots_of(chosen_BL: Tensor) -> Slots:
    """The chosen columns (bool) of each row, in their order. There is one slot at least."""
    counts_B = chosen_BL.sum(1)
    slots = max(1, int(counts_B.max()))
    columns_BS = (~chosen_BL).byte().argsort(dim=1, stable=True)[:, :slots]
    filled_BS = torch.arange(slots, device=chosen_BL.device) < counts_B[:, None]
    return Slots(
        columns_BS=columns_BS.where(filled_BS, 0),
        filled_BS=filled_BS,
        slot_BL=(chosen_BL.cumsum(1) - 1).clamp(min=0),
    )


def wanted_positions(rows: TreeRows) -> Tensor:
    """bool [lines, L]: the positions that predict wanted tokens."""
    wanted_BL = torch.zeros_like(rows.input_ids_BL, dtype=torch.bool)
    wanted_BL[rows.line_R, rows.column_R] = True
    return wanted_BL


def reads_scores(rows: TreeRows, live: LiveSet) -> bool:
    """Whether it matters what the wanted positions look at: a row may have more live positions."""
    if live.kind != "looked_at":
        return False
    return bool((_room(rows, live) > wanted_positions(rows).sum(1)).any())


def live_positions(rows: TreeRows, live: LiveSet, scores_BL: Tensor | None = None) -> Tensor:
    """bool [lines, L]: the live set of each row, ceil(fraction n) of its n positions or those that
    predict wanted tokens, if they are more.

    Args:
        scores_BL: float, of ``looked_at``; equal ones go by their order.
    """
    wanted_BL, real_BL = wanted_positions(rows), rows.tree_BL != NOTHING
    if live.kind == "forks":
        return wanted_BL
    if live.kind == "all":
        return real_BL
    if live.kind == "random":
        scores_BL = _noise(rows.input_ids_BL)
    if scores_BL is None:  # no row has room
        return wanted_BL
    free_BL = real_BL & ~wanted_BL
    ranked_BL = scores_BL.masked_fill(~free_BL, -torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    rank_BL = torch.empty_like(ranked_BL).scatter_(
        1, ranked_BL, torch.arange(ranked_BL.shape[1], device=ranked_BL.device).expand_as(ranked_BL)
    )
    more_B = _room(rows, live) - wanted_BL.sum(1)
    return wanted_BL | (free_BL & (rank_BL < more_B[:, None]))


def _room(rows: TreeRows, live: LiveSet) -> Tensor:
    """int64 [lines], how many positions of a row may be live: ceil(fraction n)."""
    count_B = (rows.tree_BL != NOTHING).sum(1).double()
    return (count_B * live.fraction - 1e-9).ceil().long()


def _noise(ids_BL: Tensor) -> Tensor:
    """Numbers without meaning, the same ones for the same rows: a run goes on as it would have."""
    digest = hashlib.blake2b(ids_BL.cpu().numpy().tobytes(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(ids_BL.shape, generator=generator).to(ids_BL.device)
