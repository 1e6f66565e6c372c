"""Who looks at whom: the attention that positions receive from some queries, seen in passing.

    score(j) = sum over layers, heads and queries i of  w_i softmax_j(q_i . k_j s)

The queries are the positions that predict wanted tokens, and w = |A| E^(1/2) how strongly one can
pull at what it sees: A is the token's advantage, E = ||onehot(y) - p||^2 its energy. The sums are
collected inside a pass that runs anyway, through transformers' interface for attention functions;
its own attention is computed as ever.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from forkpoint.batching.tree import TreeRows
from forkpoint.errors import ModelError
from forkpoint.policy.body import causal_lm, name_of
from forkpoint.policy.live import Slots
from forkpoint.types import TokenBatch

WATCHED = "forkpoint_watched"
"""The name of the attention function that is watched."""

SCORES_AT_ONCE = 2**24
"""Attention weights that are held at a time, of lines x heads x queries x keys."""


class Watch:
    """Adds up what some queries look at."""

    def __init__(
        self,
        rows: TreeRows,
        queries: Slots,
        weights_BS: Tensor,
        keys: Slots | None = None,
    ) -> None:
        """
        Args:
            queries: the columns that look.
            weights_BS: float32, w of each of them; 0 in an empty slot.
            keys: the columns of the keys that attention is given; None: it runs over the whole
                rows, queries and keys.
        """
        self.attention = ""
        """The function that is watched; set by ``watching``."""
        self.layers = 0
        """Seen so far."""
        self._rows, self._queries, self._weights_BS, self._keys = rows, queries, weights_BS, keys
        self.scores_BL = torch.zeros_like(rows.input_ids_BL, dtype=torch.float32)

    def look(self, query: Tensor, key: Tensor, scaling: float) -> None:
        """Add a layer's attention: queries [lines, heads, L or S, d], keys [lines, fewer heads, ..,
        d]."""
        self.layers += 1
        columns_BS = self._queries.columns_BS
        if self._keys is None:
            index = columns_BS[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
            query = query.gather(2, index)
        lines, heads, slots, depth = query.shape
        shared = key.shape[1]
        query = (query * scaling).view(lines, shared, heads // shared, slots, depth)
        transposed = key[:, :, None].transpose(3, 4)
        chunk = max(1, SCORES_AT_ONCE // (lines * heads * key.shape[2]))
        sums_BK = torch.zeros(lines, key.shape[2], device=key.device)
        for begin in range(0, slots, chunk):
            here = slice(begin, begin + chunk)
            seen_BCK = self._seen(columns_BS[:, here])
            attention = (query[:, :, :, here] @ transposed).float()
            attention.masked_fill_(~seen_BCK[:, None, None], torch.finfo(torch.float32).min)
            weights = self._weights_BS[:, None, None, here, None]
            sums_BK += (attention.softmax(-1) * weights).sum((1, 2, 3))
        if self._keys is None:
            self.scores_BL += sums_BK
        else:
            sums_BK.masked_fill_(~self._keys.filled_BS, 0)
            self.scores_BL.scatter_add_(1, self._keys.columns_BS, sums_BK)

    def _seen(self, columns_BC: Tensor) -> Tensor:
        if self._keys is None:
            return self._rows.visible_BSL(columns_BC)
        return (
            self._rows.visible_BSK(columns_BC, self._keys.columns_BS)
            & (self._keys.filled_BS[:, None])
        )


def pull_of(batch: TokenBatch, rows: TreeRows) -> Tensor:
    """float32 [lines, L]: the sum of |A| E^(1/2) over the wanted tokens that a position predicts.

    Where nobody gave the energies, or not that of a token, E is taken for 1.
    """
    energies_T = batch.old_energies_T
    energies_T = batch.rollout_energies_T if energies_T is None else energies_T
    pull_T = batch.advantages_T.abs()
    if energies_T is not None:
        pull_T = pull_T * energies_T.nan_to_num(nan=1.0).clamp(min=0).sqrt()
    pull_R = pull_T.to(rows.line_R.device)[rows.rows_R].float()
    pull_BL = torch.zeros_like(rows.input_ids_BL, dtype=torch.float32)
    return pull_BL.index_put((rows.line_R, rows.column_R), pull_R, accumulate=True)


@contextmanager
def watching(model: Any, watch: Watch | None) -> Iterator[None]:
    """Let ``watch`` see every attention of the passes made inside.

    Raises:
        ModelError: the model has another attention than those that transformers lends.
    """
    if watch is None:
        yield
        return
    from transformers import AttentionInterface, AttentionMaskInterface

    config = causal_lm(model).config.get_text_config()
    watch.attention = config._attn_implementation
    AttentionInterface.register(WATCHED, _watched)
    AttentionMaskInterface.register(WATCHED, AttentionMaskInterface()[watch.attention])
    token = _WATCH.set(watch)
    config._attn_implementation = WATCHED
    try:
        yield
    finally:
        config._attn_implementation = watch.attention
        _WATCH.reset(token)
    if not watch.layers:
        raise ModelError(
            f"{name_of(model)} does not use transformers' interface for attention, so nothing says "
            "which positions its forks look at: use --set training.live=forks"
        )


_WATCH: ContextVar[Watch] = ContextVar("watch")


def _watched(module: Any, query: Tensor, key: Tensor, *more: Any, **settings: Any) -> Any:
    watch = _WATCH.get()
    scaling = settings.get("scaling")
    watch.look(query, key, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return _function(watch.attention, module)(module, query, key, *more, **settings)


def _function(name: str, module: Any) -> Any:
    """The attention function of that name; ``eager`` stands beside the layer's own class."""
    from transformers import AttentionInterface

    def missing(*_: Any, **__: Any) -> Any:
        raise ModelError(
            f"{type(module).__name__} has an attention of its own that cannot be watched: use "
            "--set model.attention=sdpa or --set training.live=forks"
        )

    beside = vars(sys.modules[type(module).__module__])
    return AttentionInterface().get_interface(name, beside.get("eager_attention_forward", missing))
