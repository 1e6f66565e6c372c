"""The gradient of a mini-batch, a micro-batch at a time; and how near it is to the exact one."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from forkpoint.config.stages import LossConfig, TrainingConfig
from forkpoint.losses import batch_loss
from forkpoint.policy.module import PolicyModule
from forkpoint.types import LossOutput, TokenBatch, TokenStats


def gradient_of(
    policy: PolicyModule,
    part: TokenBatch,
    wanted_T: Tensor,
    loss_config: LossConfig,
    training: TrainingConfig,
) -> Iterator[tuple[TokenBatch, TokenStats, LossOutput]]:
    """Add a mini-batch's gradient to the parameters' ``grad``, a micro-batch at a time: each one,
    the policy's numbers and its share of the loss.

    Args:
        wanted_T: bool [T], on the CPU: the host plans the passes.
    """
    for sequences in policy.passes(
        part,
        wanted_T,
        max_tokens=training.micro_batch_tokens,
        max_sequences=training.micro_batch_sequences,
    ):
        wanted = wanted_T[part.rows_of(sequences)]
        if not wanted.any():
            policy.idle()  # a loss of zero with a gradient of zero
            continue
        micro = part.take(sequences)
        stats = policy(micro, wanted)
        output = batch_loss(micro, stats, loss_config)
        output.loss.backward()
        yield micro, stats, output


def against_exact(
    policy: PolicyModule,
    part: TokenBatch,
    wanted_T: Tensor,
    loss_config: LossConfig,
    training: TrainingConfig,
) -> dict[str, float]:
    """Cosine and ratio of norms of the gradient that is there and the exact one of a mini-batch,
    which is computed for this and dropped."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    with policy.exact():
        for _ in gradient_of(policy, part, wanted_T, loss_config, training):
            pass
    sums_3 = torch.zeros(3, dtype=torch.float64, device=policy.device)
    for p, one in zip(parameters, before, strict=True):
        pair = [_own(g if g is not None else torch.zeros_like(p)) for g in (one, p.grad)]
        products = [(x * y).sum() for x, y in ((pair[0], pair[1]), (pair[0],) * 2, (pair[1],) * 2)]
        sums_3 += torch.stack(products).to(sums_3.device)
        p.grad = one
    if policy.ranks.size > 1:  # each process holds its part of every parameter
        sums_3 = policy.ranks.add(sums_3)
    dot, local, exact = sums_3.tolist()
    if not local or not exact:
        return {}
    return {
        "grad/cosine_to_exact": dot / math.sqrt(local * exact),
        "grad/norm_to_exact": math.sqrt(local / exact),
    }


def _own(gradient: Tensor) -> Tensor:
    """This process's part of a gradient, in float64."""
    own = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    return own.detach().flatten().double()
