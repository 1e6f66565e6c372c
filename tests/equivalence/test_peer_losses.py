"""The losses of ms-swift, LightRFT and the authors' code, written out by hand, on random steps.

Each oracle is what its code does to one micro-batch, on rectangles with masks, and how
micro-batches become an update. None divides by anything that the other micro-batches of an update
must tell it.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from forkpoint.config import parse_config
from forkpoint.config.run import RunConfig
from tests.peer_steps import Step, gradients, our_losses, random_step, rectangle

SEEDS = 40
MAX_TOKENS = 12


class Rectangles:
    """A micro-batch as peers lay it out: [rows, longest completion]."""

    def __init__(self, step: Step, sequences: list[int], config: RunConfig) -> None:
        batch = step.batch
        assert batch.old_logprobs_T is not None
        assert batch.reference_logprobs_T is not None
        ones_T = torch.ones(batch.num_tokens)
        self.sampled = rectangle(step, sequences, ones_T, 0.0) > 0
        self.counted = rectangle(step, sequences, batch.mask_T.float(), 0.0) > 0
        self.entropies = rectangle(step, sequences, step.entropies_T)
        self.advantages = rectangle(step, sequences, batch.advantages_T)[:, :1]
        self.logp = rectangle(step, sequences, step.logprobs_T)
        old = rectangle(step, sequences, batch.old_logprobs_T)
        self.log_ratio = self.logp - old
        self.low, self.high = 1 - config.loss.clip_low, 1 + config.loss.clip_high
        d = rectangle(step, sequences, batch.reference_logprobs_T) - self.logp
        self.kl = config.loss.kl_coefficient * (d.exp() - d - 1)
        self.rows = len(sequences)

    def clipped(self, log_ratio: Tensor | None = None) -> Tensor:
        """- min( r A, clip(r) A )"""
        ratio = (self.log_ratio if log_ratio is None else log_ratio).exp()
        free, bound = ratio * self.advantages, ratio.clamp(self.low, self.high) * self.advantages
        return -torch.minimum(free, bound)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """0 where nothing counts."""
    total = torch.where(mask, values, 0.0).sum(dim)
    return total / mask.sum(dim).clamp(min=1)


Oracle = Callable[[Rectangles, Step, RunConfig], Tensor]
"""A micro-batch's share of its update's loss."""


def ms_swift(micro: Rectangles, step: Step, config: RunConfig) -> Tensor:
    # the threshold is of everything sampled; truncated completions are left out afterwards
    counted = micro.entropies.masked_fill(~micro.sampled, torch.nan)
    edge = torch.nanquantile(counted.flatten(), 1 - config.selection.keep_fraction)
    log_ratio = micro.log_ratio
    if config.loss.preset == "gspo":  # importance_sampling_level = "sequence_token"
        own = micro.logp - micro.logp.detach()
        log_ratio = masked_mean(log_ratio.detach(), micro.counted, 1)[:, None] + own
    per_token = micro.clipped(log_ratio)
    if config.loss.preset == "cispo":
        weight = micro.log_ratio.exp().clamp(max=micro.high).detach()
        per_token = -weight * micro.advantages * micro.logp
    per_token = torch.where(counted >= edge, per_token, 0.0) + micro.kl
    if config.loss.preset in ("dapo", "cispo"):  # num_items_in_batch: all sampled for the step
        return torch.where(micro.counted, per_token, 0.0).sum() / step.batch.num_tokens
    if config.loss.preset == "dr_grpo":
        loss = torch.where(micro.counted, per_token, 0.0).sum() / (micro.rows * MAX_TOKENS)
    else:
        loss = masked_mean(per_token, micro.counted, 1).mean()
    return loss / step.accumulation  # by the trainer it derives from


def top_k(micro: Rectangles, rows: list[Tensor], k: Callable[[int], int]) -> Tensor:
    """bool like the rectangle, the k(n) highest entropies of the n tokens of each mask in rows."""
    kept = torch.zeros_like(micro.sampled)
    for mask in rows:
        places = mask.nonzero()
        order = micro.entropies[mask].argsort(descending=True)[: k(len(places))]
        kept[tuple(places[order].T)] = True
    return kept


def lightrft(micro: Rectangles, step: Step, config: RunConfig) -> Tensor:
    own_row = torch.eye(micro.rows, dtype=torch.bool)
    rows = [micro.sampled & own_row[:, [b]] for b in range(micro.rows)]
    kept = top_k(micro, rows, lambda n: max(1, int(n * config.selection.keep_fraction)))
    loss = masked_mean(micro.clipped(), kept, 1).mean()
    return (loss + masked_mean(micro.kl, micro.sampled, 1).mean()) / step.accumulation


def authors_code(micro: Rectangles, step: Step, config: RunConfig) -> Tensor:
    fraction = config.selection.keep_fraction
    kept = top_k(micro, [micro.sampled], lambda n: max(1, int(n * fraction + 0.9999)))
    bounded = torch.minimum(micro.clipped(), -10.0 * micro.advantages)
    per_token = torch.where(micro.advantages < 0, bounded, micro.clipped())
    loss = masked_mean(per_token, kept) + masked_mean(micro.kl, micro.sampled)
    sequences_of_update = step.rows * step.accumulation
    return loss * micro.rows / sequences_of_update


CASES: list[tuple[Oracle, str, str, str]] = [
    *(
        (ms_swift, "ms-swift", loss, truncated)
        for loss in ("grpo", "dapo", "dr_grpo", "cispo", "gspo")
        for truncated in ("keep", "mask")
    ),
    (lightrft, "lightrft", "grpo", "keep"),
    (authors_code, "authors-code", "dapo", "keep"),
]


@pytest.mark.parametrize(
    ("oracle", "name", "loss", "truncated"), CASES, ids=lambda v: v if isinstance(v, str) else ""
)
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_losses_and_gradients_are_the_peers(
    oracle: Oracle, name: str, loss: str, truncated: str, beta: float
) -> None:
    seen = set()
    for seed in range(SEEDS):
        raw: dict[str, Any] = {
            "selection": {"preset": name, "keep_fraction": [0.2, 0.2, 0.5, 0.25][seed % 4]},
            "loss": {"preset": loss, "kl_coefficient": beta},
            "rollout": {"truncated": truncated, "max_new_tokens": MAX_TOKENS},
            "training": {"micro_batch_sequences": 1},
        }
        if loss == "gspo":  # the published band is so narrow that the clip takes nearly everything
            raw["loss"] |= {"clip_low": 0.1, "clip_high": 0.1}
        config = parse_config(raw)
        step = random_step(seed, config)
        ours = our_losses(step, config)
        theirs = [
            torch.stack(
                [oracle(Rectangles(step, sequences, config), step, config) for sequences in micros]
            ).sum()
            for micros in step.micro_batches
        ]
        for mine, other in ((ours, theirs), (gradients(ours, step), gradients(theirs, step))):
            torch.testing.assert_close(torch.stack(mine), torch.stack(other), rtol=1e-6, atol=1e-6)
        seen.add((step.updates, step.accumulation, bool(step.truncated_B.any())))
    assert len(seen) > 12
