"""Who sees whom in tree rows, in the form that a model's attention takes."""

from typing import Any

import torch
from torch import Tensor

from forkpoint.policy.body import body_of, causal_lm, config_field
from forkpoint.policy.flops import body_shape

ATTENTION_SHARE = 0.2
"""Scores may cost this share of what a layer's matrices cost: a dense mask saves nothing."""

BLOCK_MASK_WIDTH = 8192
"""Width of a tree row where the mask's empty blocks are skipped."""

TREE_ATTENTION = ("sdpa", "eager", "flex_attention")
"""Attention implementations of transformers that take a mask of their caller's."""

KNOWN_WINDOWS = ("sliding_window", "max_window_layers", "keep_window_size")
"""Fields of a config that bound nothing where ``takes_masks`` finds no sliding layer and sequences
are no longer than ``exact_length``."""


def attention_mask(model: Any, visible_BQK: Tensor) -> Any:
    """A 4-D mask for ``attention_mask=``: additive, or a block mask under FlexAttention.

    Args:
        visible_BQK: bool [lines, queries, keys].
    """
    device = model.device
    visible_BQK = visible_BQK.to(device)
    if model.config._attn_implementation == "flex_attention":
        return _block_mask(visible_BQK)
    hidden = torch.finfo(model.dtype).min
    mask = torch.zeros(visible_BQK.shape, dtype=model.dtype, device=device)
    return mask.masked_fill_(~visible_BQK, hidden)[:, None]


def row_width(model: Any) -> int:
    """Tokens in a tree row: the attention of a row of W tokens computes W^2 pairs.

    4 W A = ATTENTION_SHARE x 2 M,    M weights of a layer's matrices, A attention width
    """
    if model.config._attn_implementation == "flex_attention":
        return BLOCK_MASK_WIDTH
    matrices, attention = body_shape(body_of(model))
    return max(1, round(ATTENTION_SHARE * matrices / (2 * attention)))


def takes_masks(model: Any) -> str | None:
    """Why a model's attention cannot obey a mask of its caller's in every layer, or None.

    FlashAttention takes none. Layers with a sliding window, with chunks or with a state of their
    own make their mask themselves, and ours would stand in its place.
    """
    config = causal_lm(model).config.get_text_config()
    attention = config._attn_implementation
    if attention not in TREE_ATTENTION:
        return f"{attention} takes no mask"
    others = sorted(set(config_field(config, "layer_types", [])) - {"full_attention"})
    if others:
        return f"it has layers of {' and '.join(others)}"
    if config_field(config, "sliding_window") and config_field(config, "use_sliding_window", True):
        return f"it has a sliding window of {config.sliding_window} tokens"
    return None


def hidden_windows(model: Any) -> list[int]:
    """Widths in a model's config that may bound what a token sees, by the names of its fields,
    beside those that ``takes_masks`` knows."""
    fields = causal_lm(model).config.get_text_config().to_dict()
    return [
        value
        for name, value in fields.items()
        if isinstance(value, int) and not isinstance(value, bool)
        if name not in KNOWN_WINDOWS
        if "window" in name or name in ("attention_chunk_size", "index_topk")
    ]


def _block_mask(visible_BQK: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(line: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return visible_BQK[line, query, key]

    lines, queries, keys = visible_BQK.shape
    return create_block_mask(sees, lines, None, queries, keys, device=str(visible_BQK.device))
