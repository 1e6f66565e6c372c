"""Keys and values of sampled completions, kept for local gradients with the same weights."""

from collections.abc import Sequence
from typing import Any

from forkpoint.policy.keys import KeyStore, Layers
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
            self._step = step
            self._store.clear()
        for request, line, begin in zip(requests, lines, begins, strict=True):
            prompt_ids = request.prompt.token_ids
            self._store.keep(
                sequence_id(request.serial, request.sample, self._group_size),
                prompt_ids,
                _columns(cache, line, slice(begin - len(prompt_ids), begin)),
                _columns(cache, line, slice(begin, None)),
            )


def _columns(cache: Any, line: int, columns: slice) -> Layers:
    return tuple((x.keys[line, :, columns], x.values[line, :, columns]) for x in cache.layers)
