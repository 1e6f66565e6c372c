"""Keys and values of positions that are held constant, as functions of the weights that made them.

What flows into a constant key or value ends there, though the layer's own projections and the norm
before them made it of an input that is known. So they are made once more of that input, with
gradient to those weights and to nothing else: the first hop of the path that is cut off, at the
price of a few narrow products.

No class of transformers is known here. A layer runs on its recorded input until its attention hands
keys and values to the cache, which takes them and stops the layer.
"""

from collections import deque
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
        self._given: deque[Tensor] = deque()

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
        layers' inputs, which are forgotten one by one.

        Args:
            ids_BK: the tokens in them.
            positions_BK: where they stand in their sequences.
            take: from a value of every column [lines, L, D] to those of the columns.

        Raises:
            ModelError: a layer gave its cache no keys.
        """
        cache = _stopping_cache()
        found: list[tuple[Tensor, Tensor]] = []
        hooks: list[Any] = []
        before = [vars(layer).get("forward") for layer in self._layers]  # of a wrapper, mostly none

        def keep(_: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Tensor:
            if cache.layer != len(found):
                raise _off(self._model, "has layers without a key of their own, or with several")
            found.append(output)
            return inputs[0] if inputs else named["hidden_states"]  # the next layer ignores it

        for layer in self._layers:
            layer.forward = _until_the_cache(
                layer.forward, cache, lambda: take(self._given.popleft())
            )
            hooks.append(layer.register_forward_hook(keep, with_kwargs=True))
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
                del layer.forward
                if forward is not None:
                    layer.forward = forward
            for hook in hooks:
                hook.remove()
        return tuple(found)


class _KeysAreThere(Exception):
    """Stops a layer."""


def _stopping_cache() -> Any:
    from transformers import DynamicCache

    class StoppingCache(DynamicCache):
        layer: int | None = None
        pair: tuple[Tensor, Tensor] | None = None

        def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> Any:
            # FSDP warns of views.
            self.layer, self.pair = layer, (key.clone(), value.clone())
            raise _KeysAreThere

    return StoppingCache()


def _until_the_cache(forward: Callable[..., Any], cache: Any, given: Callable[[], Tensor]) -> Any:
    """A layer's forward that stops at the cache and returns keys and values: as what the layer
    returns, wrappers that gather its weights for backward (FSDP) see them."""

    def stopped(hidden: Tensor | None = None, *args: Any, **named: Any) -> Any:
        named.pop("hidden_states", None)
        cache.layer = None
        with suppress(_KeysAreThere):
            forward(given(), *args, **named)
        return cache.pair

    return stopped


def _off(model: Any, why: str) -> ModelError:
    return ModelError(
        f"{name_of(model)} {why}, of which the first hop could make them again: use "
        "--set training.first_hop=false"
    )
