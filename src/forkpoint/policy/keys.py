"""Keys and values that were computed once with the policy's weights, kept to be read again."""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from forkpoint.batching.tree import TreeRows
from forkpoint.types import TokenBatch

Layers: TypeAlias = tuple[tuple[Tensor, Tensor], ...]
"""Per layer the keys and the values of some tokens, each [.., heads, tokens, head width]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceKeys:
    """Of one sequence. Made by engines and ``keys_of``; read by ``row_cache``."""

    prompt: Layers
    """Samples of one prompt share it."""
    completion: Layers
    """Of at least all tokens but the last, which nothing is predicted from."""


class KeyStore(dict[int, SequenceKeys]):
    """By sequence id (``TokenBatch.sequence_ids_B``), as much as there is room for."""

    def __init__(self, most_bytes: float = math.inf) -> None:
        super().__init__()
        self._most_bytes = most_bytes
        self._prompts: set[int] = set()
        self.bytes = 0
        """Of the tensors that are held; what several sequences share counts once."""

    def keep(self, sequence: int, keys: SequenceKeys) -> None:
        """Hold a sequence's keys, unless that would be too much."""
        shared = id(keys.prompt) in self._prompts
        size = _bytes(keys.completion) + (0 if shared else _bytes(keys.prompt))
        if self.bytes + size > self._most_bytes:
            return
        self.bytes += size
        self._prompts.add(id(keys.prompt))
        self[sequence] = keys

    def clear(self) -> None:
        """Hold nothing."""
        super().clear()
        self._prompts.clear()
        self.bytes = 0


def _bytes(layers: Layers) -> int:
    return sum(x.numel() * x.element_size() for pair in layers for x in pair)


def new_cache() -> Any:
    """A cache of transformers that holds nothing yet."""
    from transformers import DynamicCache  # slow to import

    return DynamicCache()


def cache_of(layers: Layers) -> Any:
    """A cache of transformers that holds keys and values [lines, heads, tokens, head width]."""
    cache = new_cache()
    for layer, (keys, values) in enumerate(layers):
        cache.update(keys, values, layer)
    return cache


def row_cache(rows: TreeRows, batch: TokenBatch, kept: KeyStore) -> Any:
    """A cache of transformers that holds what running ``rows`` would put there."""
    lines, width = rows.input_ids_BL.shape
    ids = batch.sequence_ids_B.tolist()
    cache = new_cache()
    for layer, (keys, _) in enumerate(next(iter(kept.values())).prompt):
        heads, _, depth = keys.shape
        pair = torch.zeros(2, lines, heads, width, depth, dtype=keys.dtype, device=keys.device)
        for line, column, sequence, first, size in rows.pieces_N5.tolist():
            source = kept[ids[sequence]]
            part = source.completion[layer] if first else source.prompt[layer]
            for which in (0, 1):
                pair[which, line, :, column : column + size] = part[which][:, :size]
        cache.update(pair[0], pair[1], layer)
    return cache


def keep_keys(store: KeyStore, rows: TreeRows, batch: TokenBatch, cache: Any) -> None:
    """Keep what a pass over tree rows left in its cache, cut apart by sequence."""
    ids = batch.sequence_ids_B.tolist()
    prompt: Layers = ()
    for line, column, sequence, first, size in rows.pieces_N5.tolist():
        here = slice(column, column + size)
        part = tuple((x.keys[line, :, here], x.values[line, :, here]) for x in cache.layers)
        if first:
            store.keep(ids[sequence], SequenceKeys(prompt=prompt, completion=part))
        else:
            prompt = part
