"""What was tried to bring the local gradient nearer to the exact one: ``benchmarks.dial trials``.

On the batches of ``benchmarks.dial``, at a share of 0.35 with the first hop: scores of some layers
alone; a random remainder with inverse-probability weights, and without; and how near the gradient
could come if each kind of matrix, or the whole, had the exact gradient's norm.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from forkpoint.batching.tree import NOTHING, TreeRows
from forkpoint.policy import local
from forkpoint.policy.keys import Layers
from forkpoint.policy.live import LiveSet, Slots, live_positions, slots_of, wanted_positions
from forkpoint.policy.watch import Watch

Gradient = dict[str, Tensor]
SHARE = 0.35
LAYERS: dict[str, Callable[[int, int], bool]] = {
    "first third": lambda layer, count: layer < count / 3,
    "middle third": lambda layer, count: count / 3 <= layer < 2 * count / 3,
    "last third": lambda layer, count: layer >= 2 * count / 3,
    "every third": lambda layer, _: layer % 3 == 1,
}


def trials(
    gradient: Callable[[str, LiveSet | None], Gradient], layers: int, kind_of: Callable[[str], str]
) -> dict[str, float]:
    """The cosine of each way to the exact gradient.

    Args:
        gradient: of the batch, by parameter: ``sparse``, or ``local`` with a live set.
        layers: of the model.
        kind_of: the kind of matrix that a parameter is.
    """
    exact = gradient("sparse", None)
    dial, random = LiveSet(fraction=SHARE), LiveSet(kind="random", fraction=SHARE)
    plain = gradient("local", dial)
    found = {"all layers": cosine(plain, exact)}
    for name, wanted in LAYERS.items():
        with scored_in({layer for layer in range(layers) if wanted(layer, layers)}):
            found[f"scores of the {name}"] = cosine(gradient("local", dial), exact)
    found["random"] = cosine(gradient("local", random), exact)
    with weighted_remainder():
        found["random, weighted by 1/q"] = cosine(gradient("local", random), exact)
    kinds = {name: kind_of(name) for name in exact}
    ratios = {
        kind: norm(exact, kinds, kind) / norm(plain, kinds, kind) for kind in set(kinds.values())
    }
    corrected = {name: ratios[kinds[name]] * part for name, part in plain.items()}
    found["each kind of matrix with the exact norm"] = cosine(corrected, exact)
    return found


def cosine(a: Gradient, b: Gradient) -> float:
    dot, squares_a, squares_b = (
        sum(float(x[n].double().flatten() @ y[n].double().flatten()) for n in b)
        for x, y in ((a, b), (a, a), (b, b))
    )
    return dot / math.sqrt(squares_a * squares_b)


def norm(gradient: Gradient, kinds: dict[str, str], kind: str) -> float:
    return math.hypot(*(float(p.norm()) for name, p in gradient.items() if kinds[name] == kind))


@contextmanager
def scored_in(layers: set[int]) -> Iterator[None]:
    """Let the attention of these layers alone count."""
    look = Watch.look

    def some(watch: Watch, query: Tensor, key: Tensor, scaling: float) -> None:
        if watch.layers in layers:
            look(watch, query, key, scaling)
        else:
            watch.layers += 1

    with patch.object(Watch, "look", some):
        yield


@contextmanager
def weighted_remainder() -> Iterator[None]:
    """Weight what flows into a live position that was drawn with probability q by 1/q.

    Its keys and values are where it flows in, from other positions and, wrongly, from its own query
    in the same layer: an estimate that is nearly without bias, of a large variance.
    """
    weights_BS: list[Tensor] = []

    def chosen(rows: TreeRows, live: LiveSet, scores_BL: Tensor | None) -> Tensor:
        live_BL, wanted_BL = live_positions(rows, live, scores_BL), wanted_positions(rows)
        free_BL = (rows.tree_BL != NOTHING) & ~wanted_BL
        drawn_BL = live_BL & free_BL
        q_B = drawn_BL.sum(1) / free_BL.sum(1).clamp(min=1)
        weight_BL = torch.where(drawn_BL, 1 / q_B.clamp(min=1e-9)[:, None], 1.0)
        slots: Slots = slots_of(live_BL)
        weights_BS[:] = [slots.take(weight_BL)]
        return live_BL

    def cache_of(layers: Layers) -> Any:
        from transformers import DynamicCache

        class Weighted(DynamicCache):
            def update(self, key: Tensor, value: Tensor, layer: int, *a: Any, **kw: Any) -> Any:
                weight = weights_BS[0][:, None, :, None]
                key, value = (scaled(x, weight) for x in (key, value))
                return super().update(key, value, layer, *a, **kw)

        cache = Weighted()
        for layer, (keys, values) in enumerate(layers):
            DynamicCache.update(cache, keys, values, layer)
        return cache

    with patch.object(local, "live_positions", chosen), patch.object(local, "cache_of", cache_of):
        yield


def scaled(x: Tensor, weight: Tensor) -> Tensor:
    """x, whose gradient is multiplied by ``weight``."""
    return x * weight - (x * (weight - 1)).detach()


def layers_of(model: nn.Module) -> int:
    config: Any = model.config
    return config.get_text_config().num_hidden_layers
