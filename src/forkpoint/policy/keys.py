"""Keys and values that were computed once with the policy's weights, kept to be read again."""

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


KeyStore: TypeAlias = dict[int, SequenceKeys]
"""By sequence id (``TokenBatch.sequence_ids_B``), of the present weights."""


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


def keys_of(rows: TreeRows, batch: TokenBatch, cache: Any) -> KeyStore:
    """What a pass over tree rows left in its cache, cut apart by sequence."""
    ids = batch.sequence_ids_B.tolist()
    found: KeyStore = {}
    prompt: Layers = ()
    for line, column, sequence, first, size in rows.pieces_N5.tolist():
        here = slice(column, column + size)
        part = tuple((x.keys[line, :, here], x.values[line, :, here]) for x in cache.layers)
        if first:
            found[ids[sequence]] = SequenceKeys(prompt=prompt, completion=part)
        else:
            prompt = part
    return found
