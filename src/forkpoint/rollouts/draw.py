"""Drawing a token from a distribution with a given uniform number."""

import torch
from torch import Tensor


def draw_tokens(probabilities_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The inverse of the cumulative distribution: token = min { v : F(v) > u F(V) }.

    Args:
        probabilities_BV: rows that sum to about 1; summed up in float64.
        uniforms_B: float64 in [0, 1), one per row.

    Returns:
        int64 [B]. A token of probability 0 is never drawn. A row's token depends on its own
        probabilities and uniform number only, so it does not matter what else is in the batch.
    """
    cumulative_BV = probabilities_BV.cumsum(-1, dtype=torch.float64)
    total_B = cumulative_BV[:, -1]
    # u * total may round up to total, beyond which there is no token.
    target_B = torch.minimum(uniforms_B * total_B, torch.nextafter(total_B, total_B.new_zeros(())))
    return torch.searchsorted(cumulative_BV, target_B[:, None], right=True)[:, 0]
