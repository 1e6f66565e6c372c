"""Drawing a token from a distribution with a given uniform number."""

import torch
from torch import Tensor

BLOCK = 128
"""Tokens summed up before they are accumulated; most vocabularies are a multiple of it."""


def draw_tokens(probabilities_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The inverse of the cumulative distribution: token = min { v : F(v) > u F(V) }.

    First the block of the vocabulary in which F passes u F(V), then the token inside it: adding
    numbers up is cheap, and accumulating them is not.

    Args:
        probabilities_BV: rows that sum to about 1; summed up in float64.
        uniforms_B: float64 in [0, 1), one per row.

    Returns:
        int64 [B]. A token of probability 0 is never drawn. A row's token depends on its own
        probabilities and uniform number only, so it does not matter what else is in the batch.
    """
    if probabilities_BV.shape[1] <= BLOCK:
        cumulative_BV = probabilities_BV.cumsum(-1, dtype=torch.float64)
        return _first_above(cumulative_BV, uniforms_B * cumulative_BV[:, -1])
    blocks_BNK = _blocks(probabilities_BV)
    ends_BN = blocks_BNK.sum(-1, dtype=torch.float64).cumsum(-1)
    target_B = uniforms_B * ends_BN[:, -1]
    block_B = _first_above(ends_BN, target_B)
    line_B = torch.arange(len(block_B), device=block_B.device)
    start_B = torch.where(block_B > 0, ends_BN[line_B, block_B - 1], 0.0)
    within_BK = blocks_BNK[line_B, block_B].cumsum(-1, dtype=torch.float64)
    return block_B * BLOCK + _first_above(within_BK, target_B - start_B)


def _blocks(probabilities_BV: Tensor) -> Tensor:
    """The vocabulary cut into blocks, the last one filled up with impossible tokens: [B, N, K]."""
    if missing := -probabilities_BV.shape[1] % BLOCK:
        probabilities_BV = torch.nn.functional.pad(probabilities_BV, (0, missing))
    return probabilities_BV.unflatten(1, (-1, BLOCK))


def _first_above(cumulative_BN: Tensor, target_B: Tensor) -> Tensor:
    """The first place where a cumulative sum is above its row's target, [B]."""
    total_B = cumulative_BN[:, -1]
    # Rounding may put a target at the total, beyond which there is no place.
    target_B = torch.minimum(target_B, torch.nextafter(total_B, total_B.new_zeros(())))
    return torch.searchsorted(cumulative_BN, target_B[:, None], right=True)[:, 0]
