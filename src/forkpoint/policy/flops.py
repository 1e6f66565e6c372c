"""Floating-point operations of a pass, estimated from shapes: matrix products only.

    forward of T tokens     2 T M + 4 P A       M weights of the layers' matrices, A = layers x
    forward of R head rows  2 R V D             attention width, P query-key pairs computed

Of a mixture of experts M counts the experts a token is sent to. A backward pass costs twice its
forward, and checkpointed layers run theirs once more in it. Norms, activations, convolutions and
softmax are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from forkpoint.policy.body import body_of, config_field, runs_again

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Fields of a config: experts of a layer."""

EXPERTS_PER_TOKEN = (
    *("num_experts_per_tok", "num_experts_per_token", "top_k_experts"),
    *("moe_top_k", "moe_topk", "moe_k"),
)
"""Fields of a config: how many of them a token is sent to."""


@dataclass(slots=True)
class Work:
    """What a policy has run since ``take_work`` was last called. Made by ``PolicyModule``."""

    body_tokens: int = 0
    """Tokens the layers ran on with gradient, padding included."""
    nograd_tokens: int = 0
    """Tokens they ran on without."""
    head_rows: int = 0
    """Rows of the head with gradient."""
    passes: int = 0
    """Forward passes with gradient."""
    nograd_passes: int = 0
    """And without."""
    flops: float = 0.0
    dense_tokens: int = 0
    """What the dense way would have run with gradient: every sequence in padded rectangles."""
    dense_flops: float = 0.0
    live_positions: int = 0
    """Of a local gradient, as in ``TokenStats``."""
    row_positions: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, n) + getattr(other, n) for n in self.__slots__))

    def metrics(self) -> dict[str, float]:
        """``work/..``, the shares of the dense way's work that were not done, and of a local
        gradient the share of positions that were live."""
        positions = ("live_positions", "row_positions")
        counted = [name for name in self.__slots__ if name not in positions]
        found = {f"work/{name}": getattr(self, name) for name in counted} | {
            f"work/{name}_saved_fraction": 1 - run / dense if dense else 0.0
            for name, run, dense in (
                ("tokens", self.body_tokens, self.dense_tokens),
                ("flops", self.flops, self.dense_flops),
            )
        }
        if self.row_positions:
            found["work/live_fraction"] = self.live_positions / self.row_positions
        return found


def body_flops(model: Any, tokens: int, pairs: int, *, learns: bool = False) -> float:
    """Operations of a pass of the layers.

    Args:
        tokens: padding included.
        pairs: query-key pairs the attention computes, masked ones included.
        learns: with its backward pass, and what checkpointed layers run again in it.
    """
    matrices, attention = body_shape(body_of(model))
    forward = 2.0 * tokens * matrices + 4.0 * pairs * attention
    return ((4 if runs_again(model) else 3) if learns else 1) * forward


def head_flops(model: Any, rows: int) -> float:
    """Operations of one forward pass of the language-model head over ``rows`` hidden states."""
    vocabulary, width = model.get_output_embeddings().weight.shape
    return 2.0 * rows * vocabulary * width


def score_flops(model: Any, pairs: int) -> float:
    """Operations of query-key products without values, in every layer."""
    return 2.0 * pairs * body_shape(body_of(model))[1]


def key_flops(model: Any, layers: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Operations of making keys and values of the layers' inputs, with gradient to the weights: a
    product forward and two backward; and of the queries that are made beside them, forward."""
    config = body_of(model).config.get_text_config()
    width, queries = config.hidden_size, body_shape(body_of(model))[1] // len(layers)
    found = 0.0
    for keys, values in layers:
        tokens = keys.shape[0] * keys.shape[2]
        made = keys.shape[1] * (keys.shape[3] + values.shape[3])
        found += 2.0 * tokens * width * (3 * made + queries)
    return found


_SHAPES: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()


def body_shape(body: Any) -> tuple[int, int]:
    """Weights of the layers' matrices that one token meets, and layers x attention width."""
    if body in _SHAPES:
        return _SHAPES[body]
    config = body.config.get_text_config()
    share = _active_share(config)
    matrices = 0.0
    for name, module in body.named_modules():
        if isinstance(module, torch.nn.Embedding | torch.nn.Conv1d):
            continue
        for own, weight in module.named_parameters(recurse=False):
            routed = weight.ndim == 3 or "experts" in name.split(".")
            if weight.ndim > 1 and "bias" not in own:
                matrices += weight.numel() * (share if routed else 1.0)
    heads = config_field(config, "num_attention_heads", 1)
    depth = config_field(config, "head_dim") or config_field(config, "hidden_size", heads) // heads
    keys = config_field(config, "qk_head_dim") or depth  # latent attention's are wider than values
    values = config_field(config, "v_head_dim") or depth
    attention = heads * (keys + values) * config_field(config, "num_hidden_layers", 1) // 2
    return _SHAPES.setdefault(body, (round(matrices), attention))


def _active_share(config: Any) -> float:
    """The part of a layer's experts that a token is sent to; 1 without a mixture of experts."""
    places = (config, config_field(config, "ffn_config"))  # DBRX has them in the second
    experts, active = (
        next((n for place in places for name in names if (n := config_field(place, name))), None)
        for names in (EXPERTS, EXPERTS_PER_TOKEN)
    )
    return active / experts if experts and active else 1.0
