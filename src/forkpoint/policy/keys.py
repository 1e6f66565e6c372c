"""Keys and values that were computed once with the policy's weights, kept to be read again."""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from forkpoint.batching.tree import TreeRows
from forkpoint.types import TokenBatch

Layers: TypeAlias = tuple[tuple[Tensor, Tensor], ...]
"""Per layer the keys and the values of some tokens, each [.., heads, tokens, head width]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceKeys:
    """Of one sequence. Made by ``KeyStore``; read by ``row_cache``."""

    prompt: Layers
    """Samples of one prompt share it."""
    completion: Layers
    """Of at least all tokens but the last, which nothing is predicted from."""


class KeyStore(dict[int, SequenceKeys]):
    """By sequence id (``TokenBatch.sequence_ids_B``), as much as there is room for."""

    def __init__(self, most_bytes: float = math.inf) -> None:
        super().__init__()
        self._most_bytes = most_bytes
        self._prompts: dict[tuple[int, ...], Layers] = {}
        self.bytes = 0
        """Of the tensors that are held; a prompt of several sequences counts once."""

    def keep(
        self, sequence: int, prompt_ids: tuple[int, ...], prompt: Layers, completion: Layers
    ) -> None:
        """Hold copies of a sequence's keys, unless that would be too much.

        Args:
            prompt_ids: the prompt's tokens; of sequences with the same ones its keys are held once.
            prompt: maybe views of a larger cache, as those of the completion.
        """
        if sequence in self:
            return
        held = self._prompts.get(prompt_ids)
        size = _bytes(completion) + (_bytes(prompt) if held is None else 0)
        if self.bytes + size > self._most_bytes:
            return
        self.bytes += size
        if held is None:
            held = self._prompts[prompt_ids] = _copied(prompt)
        self[sequence] = SequenceKeys(prompt=held, completion=_copied(completion))

    def clear(self) -> None:
        """Hold nothing."""
        super().clear()
        self._prompts.clear()
        self.bytes = 0


def _bytes(layers: Layers) -> int:
    return sum(x.numel() * x.element_size() for pair in layers for x in pair)


def _copied(layers: Layers) -> Layers:
    """A view would keep the whole cache alive."""
    return tuple((keys.clone(), values.clone()) for keys, values in layers)


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
    ids = batch.sequence_ids_B.tolist()
    pieces = [
        (line, slice(column, column + size), kept[ids[sequence]], first)
        for line, column, sequence, first, size in rows.pieces_N5.tolist()
    ]
    cache = new_cache()
    for layer in range(len(pieces[0][2].prompt)):
        pair: list[Tensor] = []
        for which in (0, 1):  # values may be narrower than keys
            one = pieces[0][2].prompt[layer][which]
            heads, _, depth = one.shape
            whole = one.new_zeros(len(rows.input_ids_BL), heads, rows.input_ids_BL.shape[1], depth)
            for line, columns, keys, first in pieces:
                part = (keys.completion if first else keys.prompt)[layer][which]
                whole[line, :, columns] = part[:, : columns.stop - columns.start]
            pair.append(whole)
        cache.update(*pair, layer)
    return cache


def keep_keys(store: KeyStore, rows: TreeRows, batch: TokenBatch, cache: Any) -> None:
    """Keep what a pass over tree rows left in its cache, cut apart by sequence."""
    ids = batch.sequence_ids_B.tolist()
    prompt: Layers = ()
    for line, column, sequence, first, size in rows.pieces_N5.tolist():
        here = slice(column, column + size)
        part = tuple((x.keys[line, :, here], x.values[line, :, here]) for x in cache.layers)
        if first:
            prompt_ids = tuple(batch.prompts_B[sequence].tolist())
            store.keep(ids[sequence], prompt_ids, prompt, part)
        else:
            prompt = part
