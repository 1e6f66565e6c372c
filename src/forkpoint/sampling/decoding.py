"""Rows that grow side by side, a token a pass, without copying what came before.

transformers appends to its cache by copying the whole of it, and where prompts of uneven length are
padded, its attention copies keys and values once more for every query head that shares them. Both
grow with length: at 32 rows of 512 tokens they are most of the time of a small model. Here neither
is made, and every result is the same to the last bit.

Rows of different age may stand side by side: all end at the right edge, and a younger row has
nothing on its left. So new rows are joined to a running batch.

Models with other layers than attention (state spaces, linear attention, convolutions) get
transformers' own cache, which holds their states.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

ROOM = 64
"""Columns allocated ahead: the cache is copied when they are used up."""

SHARED_HEADS = "forkpoint_shared_heads"
"""The name under which transformers knows ``_attend``."""


def growing_cache() -> Any:
    """An empty ``transformers.Cache`` whose layers have room to grow."""
    from transformers import Cache

    return Cache(layer_class_to_replicate=_layer_class())


def join_caches(cache: Any, other: Any, lines: Tensor, width: int) -> None:
    """Move some rows of one growing cache into another, which has ``width`` columns then.

    Layer by layer: beside the two caches there is one more layer at most. The other is empty
    afterwards.
    """
    for layer in cache.layers:
        layer.join(other.layers.pop(0), lines, width)


def drop_columns(cache: Any, count: int) -> None:
    """Forget the first columns of a growing cache."""
    for layer in cache.layers:
        layer.drop_columns(count)


def cache_bytes(cache: Any) -> int:
    """Bytes of all that the layers of a cache of transformers hold, room to grow included."""
    held = [value for layer in cache.layers for value in vars(layer).values()]
    storages = [x.untyped_storage() for x in _tensors(held)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


@contextmanager
def shared_heads(model: Any) -> Iterator[None]:
    """Let ``model`` attend without repeating keys and values; a no-op where that is not known to
    be the same and faster: it is for ``sdpa`` on a CPU."""
    config = model.config
    if not (
        config._attn_implementation == "sdpa"
        and model.device.type == "cpu"
        and getattr(model, "_supports_attention_backend", False)
    ):
        yield
        return
    _register()
    config._attn_implementation = SHARED_HEADS
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


@cache
def _layer_class() -> type:
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):
        """``keys`` and ``values`` are the used columns of two larger tensors."""

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            super().lazy_initialization(key_states, value_states)
            self._whole = [x[..., :0, :] for x in (key_states, value_states)]

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            used = self.get_seq_length()
            end = used + key_states.shape[-2]
            if end > self._whole[0].shape[-2]:
                self._whole = [_with_room(x, used, end + ROOM) for x in self._whole]
            for whole, new in zip(self._whole, (key_states, value_states), strict=True):
                whole[..., used:end, :] = new
            return self._cut(end)

        def batch_select_indices(self, indices: Tensor) -> None:
            self._whole = [whole[indices] for whole in self._whole]
            self._cut(self.get_seq_length())

        def reorder_cache(self, beam_idx: Tensor) -> None:
            self.batch_select_indices(beam_idx)

        def drop_columns(self, count: int) -> None:
            """Forget the first ``count`` columns."""
            self._whole = [whole[..., count:, :] for whole in self._whole]
            self._cut(self.get_seq_length() - count)

        def join(self, other: Any, lines: Tensor, width: int) -> None:
            """Take in some rows of another layer, below the own ones; all end at column ``width``,
            and what is missing on the left is zeros."""
            used = self.get_seq_length()
            pairs = zip(self._whole, (other.keys, other.values), strict=True)
            self._whole = [_stacked(x[..., :used, :], y[lines], width) for x, y in pairs]
            self._cut(width)

        def _cut(self, end: int) -> tuple[Tensor, Tensor]:
            self.keys, self.values = (whole[..., :end, :] for whole in self._whole)
            return self.keys, self.values

    return GrowingLayer


def _with_room(whole: Tensor, used: int, columns: int) -> Tensor:
    """A larger copy; what is behind the used columns is never read."""
    larger = whole.new_empty(*whole.shape[:-2], columns, whole.shape[-1])
    larger[..., :used, :] = whole[..., :used, :]
    return larger


def _stacked(above: Tensor, below: Tensor, width: int) -> Tensor:
    """Rows of ``width`` used columns, aligned on the right. The left is zeros and not just any
    memory: attention multiplies it by 0."""
    count = len(above) + len(below)
    whole = above.new_zeros(count, above.shape[1], width + ROOM, above.shape[-1])
    whole[: len(above), :, width - above.shape[-2] : width] = above
    whole[len(above) :, :, width - below.shape[-2] : width] = below
    return whole


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(SHARED_HEADS, _attend)
    AttentionMaskInterface.register(SHARED_HEADS, sdpa_mask)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' own attention, but for a single query under a mask."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    plain = settings.get("position_bias") is None and not settings.get("dropout")
    if attention_mask is None or query.shape[2] != 1 or not plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    found = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        scale=settings.get("scaling"),
        enable_gqa=True,
    )
    return found.transpose(1, 2).contiguous(), None
