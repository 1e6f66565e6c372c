"""All that a training step runs on the model, inside the forward of one nn.Module.

That is the seam for wrappers which hook a module's forward (FSDP, DDP, compile): nothing calls the
model from outside of it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from forkpoint.policy.attention import row_width
from forkpoint.policy.dense import dense_passes, dense_stats
from forkpoint.policy.keys import KeptKeys, SequenceKeys
from forkpoint.policy.lengths import check_length
from forkpoint.policy.local import local_stats
from forkpoint.policy.sparse import padded_passes, padded_stats, tree_passes, tree_stats
from forkpoint.policy.trial import settle_rows
from forkpoint.types import TokenBatch, TokenStats

Passes: TypeAlias = Callable[..., list[list[int]]]
"""(batch, wanted_T, most tokens, most sequences) -> the sequences of each forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """One way to get token statistics, and so their gradient."""

    passes: Passes
    stats: Callable[..., TokenStats]
    """(model, batch, wanted_T, temperature): with gradient."""
    look: Callable[..., TokenStats]
    """The same without gradient."""


GRADIENTS: dict[tuple[str, str], Gradient] = {
    ("dense", "padded"): Gradient(passes=dense_passes, stats=dense_stats, look=dense_stats),
    ("sparse", "tree"): Gradient(passes=tree_passes, stats=tree_stats, look=tree_stats),
    ("sparse", "padded"): Gradient(passes=padded_passes, stats=padded_stats, look=padded_stats),
    ("local", "tree"): Gradient(passes=tree_passes, stats=local_stats, look=tree_stats),
}
"""(``training.gradient``, layout of rows) -> how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The arguments of a call, in one object that no wrapper looks into.

    FSDP moves each tensor among a forward's arguments to its device and copies each dict: the mask
    of wanted tokens would leave the batch's side, and keys would be kept in a copy.
    """

    batch: TokenBatch
    wanted_T: Tensor
    kept: KeptKeys | None
    keep: dict[int, SequenceKeys] | None


class PolicyModule(nn.Module):
    """TokenBatch -> TokenStats."""

    def __init__(
        self,
        model: nn.Module,
        *,
        gradient: str,
        temperature: float,
        rows: str = "auto",
        row_tokens: int | None = None,
    ) -> None:
        """
        Args:
            model: a causal language model of transformers.
            gradient: ``dense``, ``sparse`` or ``local``.
            temperature: of sampling; entropies and log-probabilities are those of softmax(z / T).
            rows: ``tree``, ``padded``, or ``auto``: trees if the model takes them.
            row_tokens: most tokens in a tree row, where what pays for this model is more.

        Raises:
            ModelError: a trial finds the numbers of this layout wrong, and there is no other.
        """
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.rows = settle_rows(model, gradient, rows)
        self._gradient = GRADIENTS[gradient, self.rows]
        self.row_tokens = min(row_width(model), row_tokens or sys.maxsize)
        """Width of a tree row."""

    def passes(
        self,
        batch: TokenBatch,
        wanted_T: Tensor,
        *,
        max_tokens: int,
        max_sequences: int | None = None,
    ) -> list[list[int]]:
        """The sequences of each forward pass; those that need none are left out.

        Raises:
            ModelError: a sequence whose numbers would depend on its neighbours.
        """
        lengths = map(len, batch.prompts_B), map(len, batch.completions_B)
        check_length(self.model, max(map(sum, zip(*lengths, strict=True)), default=0))
        layout = self._layout()
        return self._gradient.passes(batch, wanted_T, max_tokens, max_sequences, **layout)

    def __call__(
        self,
        batch: TokenBatch,
        wanted_T: Tensor,
        *,
        kept: KeptKeys | None = None,
        keep: dict[int, SequenceKeys] | None = None,
    ) -> TokenStats:
        """Statistics of at least the tokens ``wanted_T`` (bool [T]), differentiable, on the CPU.

        Args:
            kept: keys and values of these weights, by sequence id, which ``local`` reads instead of
                running the sequences once more; with gradient only.
            keep: filled with this pass's keys and values, by sequence id; tree rows without
                gradient only.
        """
        return super().__call__(_Asked(batch=batch, wanted_T=wanted_T, kept=kept, keep=keep))

    def forward(self, asked: _Asked) -> TokenStats:
        """What ``__call__`` says; wrappers hook in here."""
        given = {"kept": asked.kept, "keep": asked.keep}
        extra = self._layout() | {k: v for k, v in given.items() if v is not None}
        stats = self._gradient.stats if torch.is_grad_enabled() else self._gradient.look
        return stats(self.model, asked.batch, asked.wanted_T, self.temperature, **extra)

    def _layout(self) -> dict[str, Any]:
        return {"width": self.row_tokens} if self.rows == "tree" else {}

    @torch.no_grad()
    def annotate(
        self,
        batch: TokenBatch,
        *,
        max_tokens: int,
        max_sequences: int | None = None,
        keep: dict[int, SequenceKeys] | None = None,
    ) -> TokenStats:
        """Statistics of every token, without gradient.

        Args:
            keep: gets every sequence's keys and values, for ``local`` gradients.
        """
        every_T = torch.ones(batch.num_tokens, dtype=torch.bool)
        logprobs_T, entropies_T = torch.empty(2, batch.num_tokens)
        tokens, flops = 0, 0.0
        for sequences in self.passes(
            batch, every_T, max_tokens=max_tokens, max_sequences=max_sequences
        ):
            part = batch.take(sequences)
            stats = self(part, torch.ones(part.num_tokens, dtype=torch.bool), keep=keep)
            rows = batch.rows_of(sequences)
            logprobs_T[rows] = stats.logprobs_R
            entropies_T[rows] = stats.entropies_R
            tokens, flops = tokens + stats.body_tokens, flops + stats.flops
        return TokenStats(
            rows_R=torch.arange(batch.num_tokens),
            logprobs_R=logprobs_T,
            entropies_R=entropies_T,
            body_tokens=0,
            cached_tokens=tokens,
            flops=flops,
        )
