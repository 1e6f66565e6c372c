"""All that a training step runs on the model, inside the forward of one nn.Module.

That is the seam for wrappers which hook a module's forward (FSDP, DDP, compile): nothing calls the
model from outside of it.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from forkpoint.policy.dense import dense_stats
from forkpoint.policy.sparse import sparse_stats
from forkpoint.types import TokenBatch, TokenStats

Gradient: TypeAlias = Callable[[nn.Module, TokenBatch, Tensor, float], TokenStats]

GRADIENTS: dict[str, Gradient] = {"dense": dense_stats, "sparse": sparse_stats}
"""``training.gradient`` -> how token statistics, and so their gradient, are computed."""


class PolicyModule(nn.Module):
    """TokenBatch -> TokenStats."""

    def __init__(self, model: nn.Module, *, gradient: str, temperature: float) -> None:
        """
        Args:
            model: a causal language model of transformers.
            gradient: a key of ``GRADIENTS``.
            temperature: of sampling; entropies and log-probabilities are those of softmax(z / T).
        """
        super().__init__()
        self.model = model
        self.gradient = gradient
        self.temperature = temperature

    def forward(self, batch: TokenBatch, wanted_T: Tensor) -> TokenStats:
        """Statistics of at least the tokens ``wanted_T`` (bool [T]), differentiable, on the CPU."""
        return GRADIENTS[self.gradient](self.model, batch, wanted_T, self.temperature)

    @torch.no_grad()
    def annotate(self, batch: TokenBatch, microbatches: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of every token, without gradient: both float32 [T] nats."""
        logprobs_T = torch.empty(batch.num_tokens)
        entropies_T = torch.empty(batch.num_tokens)
        for sequences in microbatches:
            part = batch.take(sequences)
            stats = self(part, torch.ones(part.num_tokens, dtype=torch.bool))
            rows = batch.rows_of(sequences)
            logprobs_T[rows] = stats.logprobs_R
            entropies_T[rows] = stats.entropies_R
        return logprobs_T, entropies_T
