"""Keys and values of sampled completions, kept for local gradients with the same weights."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from forkpoint.policy.keys import Layers, SequenceKeys
from forkpoint.sampling.base import SampleRequest


class KeyKeeper:
    """Copies a completion's keys and values out of the sampling cache as it leaves the batch."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], SequenceKeys] = {}
        self._prompts: dict[tuple[int, ...], Layers] = {}

    def keep(
        self, requests: Sequence[SampleRequest], lines: Sequence[int], cache: Any, width: int
    ) -> None:
        """Copy what stands in the given lines of a cache whose prompts end at column ``width``."""
        for request, line in zip(requests, lines, strict=True):
            prompt = request.prompt.token_ids
            if prompt not in self._prompts:
                self._prompts[prompt] = _cut(cache, line, slice(width - len(prompt), width))
            self._kept[request.serial, request.sample] = SequenceKeys(
                prompt=self._prompts[prompt],
                completion=_cut(cache, line, slice(width, None)),
            )

    def take(self) -> dict[tuple[int, int], SequenceKeys]:
        """All that was kept since the last call, by (serial, sample)."""
        kept, self._kept, self._prompts = self._kept, {}, {}
        return kept


def _cut(cache: Any, line: int, columns: slice) -> Layers:
    def copy(tensor: Tensor) -> Tensor:
        return tensor[line, :, columns].clone()  # a view would keep the whole cache alive

    return tuple((copy(layer.keys), copy(layer.values)) for layer in cache.layers)
