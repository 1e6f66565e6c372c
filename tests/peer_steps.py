"""Random training steps, and what forkpoint makes of them: for tests against others' losses."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from forkpoint.batching import build_batch, split_microbatches, split_minibatches
from forkpoint.config.run import RunConfig
from forkpoint.losses import batch_loss, with_coefficients
from forkpoint.losses.denominators import step_totals
from forkpoint.selection import scope_groups, select
from forkpoint.types import FinishReason, Group, TokenBatch, TokenStats
from tests.conftest import make_group

JUNK = 50.0
"""What stands in places that hold no token: it shows if it is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of ``updates * accumulation * rows`` sequences and all that a policy says of them."""

    batch: TokenBatch
    """With ``old_logprobs_T`` and ``reference_logprobs_T``."""
    truncated_B: Tensor
    """bool [B]."""
    logprobs_T: Tensor
    """float32 [T], a leaf with gradient."""
    entropies_T: Tensor
    """float32 [T] nats, of the current policy."""
    updates: int
    accumulation: int
    """Micro-batches of an update."""
    rows: int
    """Sequences of a micro-batch."""

    @property
    def micro_batches(self) -> list[list[list[int]]]:
        """The sequences of each micro-batch of each update."""
        starts = range(0, self.batch.num_sequences, self.rows)
        cut = [list(range(start, start + self.rows)) for start in starts]
        a = self.accumulation
        return [cut[u * a : (u + 1) * a] for u in range(self.updates)]


def random_step(seed: int, config: RunConfig, *, tied: bool = False) -> Step:
    """Lengths, advantages, truncation, cut and streams are drawn.

    Args:
        config: decides on the mask and the pool.
        tied: many equal entropies.
    """
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    updates, accumulation, rows = integer(1, 3), integer(1, 3), integer(1, 4)
    total, groups = updates * accumulation * rows, []
    while (left := total - sum(len(g.rollouts_G) for g in groups)) > 0:
        groups.append(_group(len(groups), min(left, integer(2, 4)), integer, generator))
    batch = build_batch(
        groups,
        advantage=config.advantage.kind,
        truncated=config.rollout.truncated,
        zero_advantage_in_pool=config.selection.zero_advantage_in_pool,
        truncated_in_pool=config.selection.truncated_in_pool,
    )
    old_T, reference_T, shift_T, entropies_T = torch.rand(4, batch.num_tokens, generator=generator)
    spread = 0.8 if integer(0, 3) else 6.0  # ratios from 0.67 to 1.5, or from 0.05 to 20
    logprobs_T = -3 * old_T + spread * (shift_T - 0.5)
    rollouts = [r for g in groups for r in g.rollouts_G]
    return Step(
        batch=batch.with_streams(old_logprobs_T=-3 * old_T, reference_logprobs_T=-3 * reference_T),
        truncated_B=torch.tensor(
            [r.completion.finish_reason is FinishReason.LENGTH for r in rollouts]
        ),
        logprobs_T=logprobs_T.requires_grad_(),
        entropies_T=(4 * entropies_T).round() / 4 if tied else 3 * entropies_T,
        updates=updates,
        accumulation=accumulation,
        rows=rows,
    )


def _group(
    serial: int, size: int, integer: Callable[[int, int], int], generator: torch.Generator
) -> Group:
    rewards = torch.randint(0, 2, (size,), generator=generator).float().tolist()
    group = make_group(serial, rewards, [integer(1, 12) for _ in range(size)])
    rollouts = [
        replace(
            rollout,
            completion=replace(
                rollout.completion,
                finish_reason=FinishReason.LENGTH if integer(0, 3) == 0 else FinishReason.STOP,
            ),
        )
        for rollout in group.rollouts_G
    ]
    return replace(group, rollouts_G=tuple(rollouts))


def our_losses(step: Step, config: RunConfig) -> list[Tensor]:
    """The loss of each update, with gradient, made as ``training.step`` makes it."""
    losses = []
    totals = step_totals(step.batch, step.updates)
    for sequences in split_minibatches(step.batch, step.updates):
        part, rows = step.batch.take(sequences), step.batch.rows_of(sequences)
        cut = split_microbatches(part, max_tokens=10_000, sequences=step.rows)
        groups_T = scope_groups(part, config.selection.scope, cut)
        weights_T = torch.zeros(part.num_tokens)
        if part.pool_T.any():
            entropies_T = step.entropies_T[rows]
            chosen = select(part, entropies_T, groups_T, config.selection, seed=0, step=1)
            weights_T = chosen.weights_T
        part = with_coefficients(part, weights_T, groups_T, config, totals)
        loss = torch.zeros(())
        for micro_sequences in cut:
            micro_rows = part.rows_of(micro_sequences)
            stats = TokenStats(
                rows_R=torch.arange(len(micro_rows)),
                logprobs_R=step.logprobs_T[rows][micro_rows],
                entropies_R=step.entropies_T[rows][micro_rows],
                energies_R=torch.zeros_like(step.entropies_T[rows][micro_rows]),
                body_tokens=0,
            )
            loss = loss + batch_loss(part.take(micro_sequences), stats, config.loss).loss
        losses.append(loss)
    return losses


def rectangle(step: Step, sequences: list[int], values_T: Tensor, fill: float = JUNK) -> Tensor:
    """A stream of some sequences as [rows, longest completion], with its gradient."""
    lengths = [len(step.batch.completions_B[b]) for b in sequences]
    rows = [values_T[step.batch.rows_of([b])] for b in sequences]
    pad = torch.nn.functional.pad
    return torch.stack([pad(r, (0, max(lengths) - len(r)), value=fill) for r in rows])


def gradients(losses: list[Tensor], step: Step) -> list[Tensor]:
    """float32 [T], of each loss with respect to the log-probabilities."""
    return [
        torch.autograd.grad(loss, step.logprobs_T, retain_graph=True, materialize_grads=True)[0]
        for loss in losses
    ]
