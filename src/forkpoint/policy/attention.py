"""Who sees whom in tree rows, in the form that a model's attention takes."""

from typing import Any

import torch
from torch import Tensor

from forkpoint.policy.flops import body_shape

ATTENTION_SHARE = 0.2
"""Scores may cost this share of what a layer's matrices cost: a dense mask saves nothing."""

BLOCK_MASK_WIDTH = 8192
"""Width of a tree row where the mask's empty blocks are skipped."""

TREE_ATTENTION = ("sdpa", "eager", "flex_attention")
"""Attention implementations of transformers that take a mask of their caller's."""


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
    matrices, attention = body_shape(model.base_model)
    return max(1, round(ATTENTION_SHARE * matrices / (2 * attention)))


def takes_trees(model: Any) -> bool:
    """Whether a model predicts the same in a tree row as in rows of their own.

    False for attention that takes no mask (FlashAttention), for layers that are not full attention
    (sliding windows, state spaces), and wherever a small trial comes out different.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if model.config._attn_implementation not in TREE_ATTENTION or kinds != {"full_attention"}:
        return False
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    return _trial(model)


@torch.no_grad()
def _trial(model: Any) -> bool:
    """One prompt with two completions, in one row and in two."""
    ids = [3, 4, 5, 6, 7, 4, 3]  # prompt 3 4 5, completions 6 7 and 4 3
    apart = torch.tensor([[3, 4, 5, 6, 7], [3, 4, 5, 4, 3]], device=model.device)
    visible_LL = torch.ones(7, 7, dtype=torch.bool).tril()
    visible_LL[5:, 3:5] = False
    body = model.base_model
    try:
        together = body(
            input_ids=torch.tensor([ids], device=model.device),
            position_ids=torch.tensor([[0, 1, 2, 3, 4, 3, 4]], device=model.device),
            attention_mask=attention_mask(model, visible_LL[None]),
            use_cache=False,
        ).last_hidden_state[0]
    except (ValueError, RuntimeError, TypeError, AttributeError):
        return False  # this model wants a mask of another form
    first, second = body(input_ids=apart, use_cache=False).last_hidden_state
    expected = torch.cat([first, second[3:]])
    bound = 1e-3 if model.dtype == torch.float32 else 0.1
    return bool((together - expected).abs().max() <= bound * expected.abs().max())


def _block_mask(visible_BQK: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(line: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return visible_BQK[line, query, key]

    lines, queries, keys = visible_BQK.shape
    return create_block_mask(sees, lines, None, queries, keys, device=str(visible_BQK.device))
