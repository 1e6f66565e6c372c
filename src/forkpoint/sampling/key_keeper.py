"""Keys and values of sampled completions, kept for local gradients with the same weights."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from forkpoint.policy.keys import KeyStore, Layers, SequenceKeys
from forkpoint.sampling.base import SampleRequest
from forkpoint.types import sequence_id


class KeyKeeper:
    """Copies a completion's keys and values out of the sampling cache as it leaves the batch."""

    def __init__(self, store: KeyStore, group_size: int) -> None:
        """
        Args:
            store: the policy's; it holds one step's keys at most.
        """
        self._store, self._group_size = store, group_size
        self._prompts: dict[tuple[int, ...], Layers] = {}
        self._step: int | None = None

    def keep(
        self,
        step: int,
        requests: Sequence[SampleRequest],
        lines: Sequence[int],
        begins: Sequence[int],
        cache: Any,
    ) -> None:
        """Copy what stands in the given lines of a cache.

        Args:
            begins: the column after each one's prompt, where its completion begins.
        """
        if step != self._step:
            self._step, self._prompts = step, {}
            self._store.clear()
        for request, line, begin in zip(requests, lines, begins, strict=True):
            prompt = request.prompt.token_ids
            if prompt not in self._prompts:
                self._prompts[prompt] = _cut(cache, line, slice(begin - len(prompt), begin))
            sequence = sequence_id(request.serial, request.sample, self._group_size)
            completion = _cut(cache, line, slice(begin, None))
            self._store.keep(
                sequence, SequenceKeys(prompt=self._prompts[prompt], completion=completion)
            )


def _cut(cache: Any, line: int, columns: slice) -> Layers:
    def copy(tensor: Tensor) -> Tensor:
        return tensor[line, :, columns].clone()  # a view would keep the whole cache alive

    return tuple((copy(layer.keys), copy(layer.values)) for layer in cache.layers)
