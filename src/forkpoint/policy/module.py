"""All that a training step runs on the model, inside the forward of one nn.Module.

That is the seam for wrappers which hook a module's forward (FSDP, DDP, compile): nothing calls the
model from outside of it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint.policy.attention import row_width
from forkpoint.policy.body import check_length
from forkpoint.policy.dense import dense_flops, dense_passes, dense_stats
from forkpoint.policy.flops import Work
from forkpoint.policy.keys import KeyStore
from forkpoint.policy.live import LiveSet
from forkpoint.policy.local import local_stats
from forkpoint.policy.sparse import padded_passes, padded_stats, tree_passes, tree_stats
from forkpoint.policy.trial import SHORT, settle_rows, trial_batch
from forkpoint.ranks import ALONE, Ranks
from forkpoint.types import TokenBatch, TokenStats, sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """One way to get token statistics, and so their gradient."""

    passes: Callable[..., list[list[int]]]
    """(batch, wanted_T, most tokens, most sequences) -> the sequences of each forward pass."""
    stats: Callable[..., TokenStats]
    """(model, batch, wanted_T, temperature): with gradient."""
    nograd_stats: Callable[..., TokenStats]
    """The same without gradient."""


GRADIENTS: dict[tuple[str, str], Gradient] = {
    ("dense", "padded"): Gradient(passes=dense_passes, stats=dense_stats, nograd_stats=dense_stats),
    ("sparse", "tree"): Gradient(passes=tree_passes, stats=tree_stats, nograd_stats=tree_stats),
    ("sparse", "padded"): Gradient(
        passes=padded_passes, stats=padded_stats, nograd_stats=padded_stats
    ),
    ("local", "tree"): Gradient(passes=tree_passes, stats=local_stats, nograd_stats=tree_stats),
}
"""(``training.gradient``, layout of rows) -> how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arguments:
    """The arguments of a call, in one object that no wrapper looks into.

    FSDP moves each tensor among a forward's arguments to its device: the mask of wanted tokens,
    from which the host plans a layout, would leave the host.
    """

    batch: TokenBatch
    wanted_T: Tensor
    keep_keys: bool


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
        live: LiveSet | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """
        Args:
            model: a causal language model of transformers.
            gradient: ``dense``, ``sparse`` or ``local``.
            temperature: of sampling; entropies and log-probabilities are those of softmax(z / T).
            rows: ``tree``, ``padded``, or ``auto``: trees if the model takes them.
            row_tokens: most tokens in a tree row, where what pays for this model is more.
            live: which positions ``local`` runs with gradient.
            ranks: the processes that share the passes of a batch, which all of them hold.

        Raises:
            ModelError: a trial finds the numbers of this layout wrong, and there is no other.
        """
        super().__init__()
        self.model = model
        self.temperature = temperature
        live = live or LiveSet()
        self.rows = ranks.by_first(lambda: settle_rows(model, gradient, rows, live))
        self._gradient = GRADIENTS[gradient, self.rows]
        if gradient == "local":
            self._gradient = replace(self._gradient, stats=partial(local_stats, live=live))
        self.row_tokens = min(row_width(model), row_tokens or sys.maxsize)
        """Width of a tree row."""
        self.ranks = ranks
        # With several processes all must run the layers equally often: none keeps keys.
        # The first hop needs what the layers were given beside them.
        keeps = gradient == "local" and ranks.size == 1 and not live.first_hop
        self.keys: KeyStore | None = KeyStore(1e9 * live.keys_gb) if keeps else None
        """Keys and values of the present weights, which ``local`` reads instead of running their
        sequences once more: left here by passes with ``keep_keys``, and by the sampler."""
        self._stale_keys = live.stale_keys
        self._work = Work()

    @property
    def device(self) -> torch.device:
        """Where a batch's streams should lie: the model's device, if it knows float64."""
        device = next(self.model.parameters()).device
        return torch.device("cpu") if device.type == "mps" else device

    def weights_changed(self) -> None:
        """To be called after every update: forgets what was computed with the old weights."""
        if self.keys is not None and not self._stale_keys:
            self.keys.clear()

    def take_work(self) -> Work:
        """What was run since the last call."""
        work, self._work = self._work, Work()
        return work

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Take the exact gradient for a while; what is run for it is no part of the work."""
        before, work = self._gradient, self.take_work()
        if before.stats is not dense_stats:
            self._gradient = GRADIENTS["sparse", self.rows]
        try:
            yield
        finally:
            self._gradient, self._work = before, work

    def passes(
        self,
        batch: TokenBatch,
        wanted_T: Tensor,
        *,
        max_tokens: int,
        max_sequences: int | None = None,
    ) -> list[list[int]]:
        """The sequences of each forward pass of this process; those that need none are left out.

        All processes have the same number of passes. One without sequences is to be spent in
        ``idle``.

        Raises:
            ModelError: a sequence whose numbers would depend on its neighbours.
        """
        lengths = map(len, batch.prompts_B), map(len, batch.completions_B)
        check_length(self.model, max(map(sum, zip(*lengths, strict=True)), default=0))
        if torch.is_grad_enabled() and self.ranks.first:
            for dense in dense_passes(batch, wanted_T, max_tokens, max_sequences):
                width = max(len(batch.prompts_B[b]) + len(batch.completions_B[b]) for b in dense)
                self._work.dense_tokens += len(dense) * width
                self._work.dense_flops += dense_flops(self.model, len(dense), width, learns=True)
        layout = self._layout()
        found = self._gradient.passes(batch, wanted_T, max_tokens, max_sequences, **layout)
        costs = [
            sum(len(batch.prompts_B[b]) + len(batch.completions_B[b]) for b in one) for one in found
        ]
        return [[] if i is None else found[i] for i in self.ranks.share(costs)]

    def idle(self) -> None:
        """Take part in a pass of the other processes without sequences of one's own.

        A pass over a few made-up tokens, and with gradient a backward pass of zeros.
        """
        if self.ranks.size == 1:
            return
        batch, wanted_T = trial_batch(self.model, SHORT)
        batch = batch.to(self.device)
        stats = super().__call__(_Arguments(batch=batch, wanted_T=wanted_T, keep_keys=False))
        if torch.is_grad_enabled():
            (0.0 * (stats.logprobs_R.sum() + stats.entropies_R.sum())).backward()

    def __call__(
        self, batch: TokenBatch, wanted_T: Tensor, *, keep_keys: bool = False
    ) -> TokenStats:
        """Statistics of at least the tokens ``wanted_T``, differentiable, on the batch's device.

        Args:
            wanted_T: bool [T], best on the CPU, where the layout is planned.
            keep_keys: leave this pass's keys and values in ``keys``; without gradient only.
        """
        stats = super().__call__(_Arguments(batch=batch, wanted_T=wanted_T, keep_keys=keep_keys))
        learns = torch.is_grad_enabled()
        self._work += Work(
            body_tokens=stats.body_tokens if learns else 0,
            nograd_tokens=stats.cached_tokens if learns else stats.body_tokens,
            head_rows=len(stats.rows_R) if learns else 0,
            passes=int(learns),
            nograd_passes=int(not learns),
            flops=stats.flops,
            live_positions=stats.live_positions if learns else 0,
            row_positions=stats.row_positions if learns else 0,
        )
        return stats

    def forward(self, arguments: _Arguments) -> TokenStats:
        """What ``__call__`` says; wrappers hook in here."""
        extra = self._layout()
        learns, ids = torch.is_grad_enabled(), arguments.batch.sequence_ids_B.tolist()
        local = self._gradient.nograd_stats is not self._gradient.stats
        if self.keys is not None and local and learns and all(i in self.keys for i in ids):
            extra["kept"] = self.keys
        if self.keys is not None and arguments.keep_keys and not learns:
            extra["keep"] = self.keys
        stats = self._gradient.stats if learns else self._gradient.nograd_stats
        return stats(self.model, arguments.batch, arguments.wanted_T, self.temperature, **extra)

    def _layout(self) -> dict[str, Any]:
        return {"width": self.row_tokens} if self.rows == "tree" else {}

    @torch.no_grad()
    def annotate(
        self,
        batch: TokenBatch,
        *,
        max_tokens: int,
        max_sequences: int | None = None,
        keep_keys: bool = False,
    ) -> TokenStats:
        """Statistics of every token, without gradient.

        Args:
            keep_keys: the keys and values of these passes replace those in ``keys``.
        """
        if keep_keys and self.keys is not None:
            self.keys.clear()
        every_T = torch.ones(batch.num_tokens, dtype=torch.bool)
        found_3T = torch.zeros(3, batch.num_tokens, device=batch.token_ids_T.device)
        tokens, flops = 0, 0.0
        for sequences in self.passes(
            batch, every_T, max_tokens=max_tokens, max_sequences=max_sequences
        ):
            if not sequences:
                self.idle()
                continue
            part = batch.take(sequences)
            everything_T = torch.ones(part.num_tokens, dtype=torch.bool)
            stats = self(part, everything_T, keep_keys=keep_keys)
            rows = sent(batch.rows_of(sequences), found_3T.device)
            found_3T[0, rows] = stats.logprobs_R
            found_3T[1, rows] = stats.entropies_R
            found_3T[2, rows] = stats.energies_R
            tokens, flops = tokens + stats.body_tokens, flops + stats.flops
        logprobs_T, entropies_T, energies_T = self.ranks.add(
            found_3T
        )  # zeros where another process ran
        return TokenStats(
            rows_R=torch.arange(batch.num_tokens, device=found_3T.device),
            logprobs_R=logprobs_T,
            entropies_R=entropies_T,
            energies_R=energies_T,
            body_tokens=0,
            cached_tokens=tokens,
            flops=flops,
        )
