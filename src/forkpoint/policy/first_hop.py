"""Keys and values of positions that are held constant, as functions of the weights that made them.

What flows into a constant key or value ends there, though the layer's own projections and the norm
before them made it of an input that is known. So they are made once more of that input, with
gradient to those weights and to nothing else: the first hop of the path that is cut off, at the
price of a few narrow products.

No class of transformers is known here. A layer runs on its recorded input until its attention hands
keys and values to the cache, which takes them and stops the layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor

from forkpoint.errors import ModelError
from forkpoint.policy.body import body_of, name_of
from forkpoint.policy.keys import Layers


class Inputs:
    """What each layer of a model was given in a pass."""

    def __init__(self, model: Any) -> None:
        """
        Raises:
            ModelError: the model has no layers that transformers names.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        modules = body_of(model).modules()
        self._layers = [m for m in modules if isinstance(m, GradientCheckpointingLayer)]
        if not self._layers:
            raise _off(model, "has no layers that are known")
        self._model = model
        self._given: list[Tensor] = []

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the layers' inputs of the one pass that is made inside."""

        def record(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._given.append((given[0] if given else named["hidden_states"]).detach())

        hooks = [m.register_forward_pre_hook(record, with_kwargs=True) for m in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def keys(
        self, ids_BK: Tensor, positions_BK: Tensor, take: Callable[[Tensor], Tensor]
    ) -> Layers:
        """Keys and values of some columns, with gradient to the weights that make them of the
        layers' inputs.

        Args:
            ids_BK: the tokens in them.
            positions_BK: where they stand in their sequences.
            take: from a value of every column [lines, L, D] to those of the columns.

        Raises:
            ModelError: a layer gave its cache no keys.
        """
        cache, given = _stopping_cache(), iter(self._given)
        before = [layer.forward for layer in self._layers]
        for layer in self._layers:
            layer.forward = _until_the_cache(layer.forward, lambda: take(next(given)))
        try:
            body_of(self._model)(
                input_ids=ids_BK,
                position_ids=positions_BK,
                attention_mask=positions_BK.new_zeros(1, 1, 1, 1, dtype=self._model.dtype),
                past_key_values=cache,
                use_cache=True,
            )
        finally:
            for layer, forward in zip(self._layers, before, strict=True):
                layer.forward = forward
        if sorted(cache.found) != list(range(len(self._layers))):
            raise _off(self._model, "has layers without keys of their own")
        return tuple(cache.found[layer] for layer in range(len(self._layers)))


class _KeysAreThere(Exception):
    """Stops a layer."""


def _stopping_cache() -> Any:
    from transformers import DynamicCache

    class StoppingCache(DynamicCache):
        def __init__(self) -> None:
            super().__init__()
            self.found: dict[int, tuple[Tensor, Tensor]] = {}

        def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> Any:
            self.found[layer] = key, value
            raise _KeysAreThere

    return StoppingCache()


def _until_the_cache(forward: Callable[..., Any], given: Callable[[], Tensor]) -> Any:
    def stopped(hidden: Tensor | None = None, *args: Any, **named: Any) -> Any:
        if hidden is None:
            hidden = named.pop("hidden_states")
        with suppress(_KeysAreThere):
            forward(given(), *args, **named)
        return hidden  # what the next layer ignores

    return stopped


def _off(model: Any, why: str) -> ModelError:
    return ModelError(
        f"{name_of(model)} {why}, of which the first hop could make them again: use "
        "--set training.first_hop=false"
    )
