"""Groups in which no answer is better than another, from which nothing is to be learned."""

import torch
from torch import Tensor

EQUAL_REWARDS = 1e-6
"""Of the largest of a group, or of 1: what float32 makes of equal rewards."""


def flat_groups(low_G: Tensor, high_G: Tensor) -> Tensor:
    """bool [groups]: whether a group's lowest and highest reward are equal but for rounding."""
    largest_G = torch.maximum(low_G.abs(), high_G.abs()).clamp(min=1.0)
    return high_G - low_G <= EQUAL_REWARDS * largest_G
