"""Floating-point operations of a pass, estimated from shapes: matrix products only.

    forward of T tokens     2 T M + 4 P A       M weights of the layers' matrices, A = layers x
    forward of R head rows  2 R V D             attention width, P query-key pairs computed

A backward pass costs twice its forward. Norms, activations and softmax are left out.
"""

from functools import cache
from typing import Any

import torch


def body_flops(model: Any, tokens: int, pairs: int) -> float:
    """Of one forward pass of the layers.

    Args:
        tokens: padding included.
        pairs: query-key pairs the attention computes, masked ones included.
    """
    matrices, attention = body_shape(model.base_model)
    return 2.0 * tokens * matrices + 4.0 * pairs * attention


def head_flops(model: Any, rows: int) -> float:
    """Of one forward pass of the language-model head over ``rows`` hidden states."""
    vocabulary, width = model.get_output_embeddings().weight.shape
    return 2.0 * rows * vocabulary * width


@cache
def body_shape(body: Any) -> tuple[int, int]:
    """Weights of the layers' matrices, and layers x attention width."""
    embedding = body.get_input_embeddings()
    matrices = sum(
        module.weight.numel() for module in body.modules() if isinstance(module, torch.nn.Linear)
    )
    config = body.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    depth = getattr(config, "head_dim", None) or embedding.weight.shape[1] // heads
    return matrices, heads * depth * getattr(config, "num_hidden_layers", 1)
