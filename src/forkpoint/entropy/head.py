"""Entropy and log-probability straight from hidden states, without ever storing the logits.

The language-model head is the widest matrix of a model: for R rows its logits are R x V numbers
(V is 150 thousand for Qwen3). Here a block of rows meets the vocabulary a chunk at a time, in one
pass, with a running maximum m and two running sums (Milakov & Gimelshein 2018, with a second sum):

    s = sum_v e^(z_v - m)      t = sum_v e^(z_v - m) (z_v - m)      H = ln s - t / s

Both terms of H are non-negative, so a near-certain token loses no digits to cancellation. A third
sum, q = sum_{v != y} e^(2 (z_v - m)) over all words but the sampled one, gives the squared norm of
the token's policy gradient at z (its energy), without 1 - 2 p + sum p^2 cancelling:

    E = || onehot(y) - p ||^2 = (1 - p_y)^2 + q / s^2

The backward pass keeps a few numbers per row and computes a chunk's logits again:

    z = cap( a (h W^T + b) ) / T,   p = softmax(z),   cap(x) = c tanh(x / c) if the model has one
    d ln p_y / dz = onehot(y) - p          d H / dz = -p (ln p + H)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROWS = {"cpu": 2**10, "other": 2**13}
"""Rows that meet the vocabulary together: each block walks over the whole weight, and the gradient
of it, once."""

CHUNK_ELEMENTS = {"cpu": 2**19, "other": 2**26}
"""Logits held at once: on a CPU they stay in its cache. Changes memory and speed, results only by
rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """What a model does to its head's output before the softmax."""

    scale: float = 1.0
    """a: logits are multiplied by it (Cohere, Granite, Falcon-H1)."""
    softcap: float | None = None
    """c: logits are squeezed into (-c, c) (Gemma)."""


PLAIN = HeadShape()


def head_stats(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    token_ids_R: Tensor,
    temperature: float,
    shape: HeadShape = PLAIN,
) -> tuple[Tensor, Tensor, Tensor]:
    """ln p(token), H and E of each row: float32 [R], the first two in nats.

    Differentiable once in ``hidden_RD``, ``weight_VD`` and ``bias_V``, through ln p and H.

    Args:
        hidden_RD: what the head reads, in the head's dtype; logits and softmax are float32.
        temperature: of sampling; logits are divided by it.
    """
    outputs: Any = _HeadStats.apply(hidden_RD, weight_VD, bias_V, token_ids_R, temperature, shape)
    return outputs


def token_stats(
    hidden: Tensor,
    head_weight: Tensor,
    token_ids: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """ln p(token) and the entropy H of each position, in nats, for anyone's training loop.

    With z = (h W^T + b) / T over the V words: ln p = z_y - ln sum_v e^(z_v) and
    H = -sum_v p_v ln p_v. The logits are never stored; both results are differentiable once.

    Args:
        hidden: [.., D], the last hidden states that predict ``token_ids``.
        head_weight: [V, D], the language-model head's.
        token_ids: int64 [..].
        bias: [V], the head's.
        temperature: of sampling.

    Returns:
        Two tensors of the shape of ``token_ids``, float32.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    logprobs_R, entropies_R, _ = head_stats(
        rows, head_weight, bias, token_ids.reshape(-1), temperature
    )
    return logprobs_R.view(token_ids.shape), entropies_R.view(token_ids.shape)


def head_logits(
    hidden_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, shape: HeadShape = PLAIN
) -> Tensor:
    """cap( a (h W^T + b) ), the logits of each row in full: float32 [R, V].

    Not differentiable through scale and cap. For a few rows, such as those of one sampled token.
    """
    return _logits(hidden_RD, weight_VD, bias_V, 1.0, shape)[0]


class _HeadStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        token_ids_R: Tensor,
        temperature: float,
        shape: HeadShape,
    ) -> tuple[Tensor, Tensor, Tensor]:
        stats = hidden_RD.new_empty(4, len(hidden_RD), dtype=torch.float32)
        for rows in _row_blocks(hidden_RD):
            stats[:, rows] = _online_stats(
                hidden_RD[rows], weight_VD, bias_V, token_ids_R[rows], temperature, shape
            )
        # Cloned: a result that is a view of another tensor is one that FSDP warns of.
        logprobs_R, entropies_R, normalizers_R, energies_R = (one.clone() for one in stats)
        ctx.save_for_backward(hidden_RD, weight_VD, bias_V, token_ids_R, entropies_R, normalizers_R)
        ctx.temperature, ctx.shape = temperature, shape
        ctx.mark_non_differentiable(energies_R)
        ctx.set_materialize_grads(False)  # most losses leave the entropy alone
        return logprobs_R, entropies_R, energies_R

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_RD, weight_VD, bias_V, token_ids_R, *kept = ctx.saved_tensors
        grad_logprobs_R, grad_entropies_R, _ = grad_outputs
        if grad_logprobs_R is None:
            grad_logprobs_R = torch.zeros_like(kept[0])
        # Sums over chunks are kept in float32: a bfloat16 running sum would lose small terms.
        grad_hidden_RD = torch.zeros_like(hidden_RD, dtype=torch.float32)
        trained = ctx.needs_input_grad[1]
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if trained else None
        grad_bias_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        for rows in _row_blocks(hidden_RD):
            per_row = (token_ids_R[rows], *(x[rows] for x in (*kept, grad_logprobs_R)))
            grad_entropies = None if grad_entropies_R is None else grad_entropies_R[rows]
            for words in _chunks(hidden_RD[rows], weight_VD):
                bias = None if bias_V is None else bias_V[words]
                grad_z = _logits_gradient(
                    hidden_RD[rows],
                    weight_VD[words],
                    bias,
                    words.start,
                    per_row,
                    grad_entropies,
                    ctx,
                )
                grad_hidden_RD[rows] += product(grad_z, weight_VD[words])
                if grad_weight_VD is not None:
                    grad_weight_VD[words] += product(grad_z.T, hidden_RD[rows])
                if grad_bias_V is not None:
                    grad_bias_V[words] += grad_z.float().sum(0)
        return (
            grad_hidden_RD.to(hidden_RD.dtype),
            None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype),
            None if bias_V is None or grad_bias_V is None else grad_bias_V.to(bias_V.dtype),
            None,
            None,
            None,
        )


def _online_stats(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    token_ids_R: Tensor,
    temperature: float,
    shape: HeadShape,
) -> Tensor:
    """ln p(token), H, ln sum e^z and E of a block of rows: float32 [4, R]."""
    count = len(hidden_RD)
    largest_R = hidden_RD.new_full((count,), torch.finfo(torch.float32).min, dtype=torch.float32)
    sum_R, weighted_R, chosen_R, squares_R = torch.zeros(4, count, device=hidden_RD.device)
    for words in _chunks(hidden_RD, weight_VD):
        bias = None if bias_V is None else bias_V[words]
        z, _ = _logits(hidden_RD, weight_VD[words], bias, temperature, shape)
        inside_R, places_R = _inside(token_ids_R, words.start, z.shape[1])
        chosen_R = torch.where(inside_R, z.gather(1, places_R[:, None])[:, 0], chosen_R)
        previous_R, largest_R = largest_R, torch.maximum(largest_R, z.amax(1))
        shift_R = previous_R - largest_R
        decay_R = shift_R.exp()
        weighted_R = decay_R * (weighted_R + shift_R * sum_R)
        squares_R = decay_R.square() * squares_R
        z -= largest_R[:, None]
        if bias is not None:  # a forbidden word's -inf must add 0 and not 0 * inf
            z.clamp_(min=torch.finfo(torch.float32).min)
        exp = z.exp()
        sum_R = decay_R * sum_R + exp.sum(1)
        weighted_R += z.mul_(exp).sum(1)
        others = exp.gather(1, places_R[:, None]).masked_fill_(inside_R[:, None], 0.0)
        squares_R += exp.scatter_(1, places_R[:, None], others).square_().sum(1)
    normalizers_R = largest_R + sum_R.log()
    entropies_R = sum_R.log() - weighted_R / sum_R
    logprobs_R = (chosen_R - largest_R) - sum_R.log()  # in this order nothing large is rounded
    energies_R = logprobs_R.expm1().square() + squares_R / sum_R.square()
    return torch.stack([logprobs_R, entropies_R, normalizers_R, energies_R])


def _logits_gradient(
    hidden_RD: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor | None,
    first: int,
    per_row: tuple[Tensor, ...],
    grad_entropies_R: Tensor | None,
    ctx: Any,
) -> Tensor:
    """d loss / d (h W^T + b) of one chunk, in the head's dtype.

    With g, e the gradients of a row's two results: g (onehot - p) - e p (ln p + H), times what
    scale, cap and temperature add to the chain.
    """
    token_ids_R, entropies_R, normalizers_R, grad_logprobs_R = per_row
    z, slope = _logits(hidden_RD, weight_CD, bias_C, ctx.temperature, ctx.shape)
    factor = ctx.shape.scale / ctx.temperature
    g_R = factor * grad_logprobs_R
    z -= normalizers_R[:, None]  # ln p
    if grad_entropies_R is not None:
        e_R = factor * grad_entropies_R
        p = z.exp()
        z.clamp_(min=torch.finfo(torch.float32).min)
        grad_z = p.mul_(-(g_R[:, None] + e_R[:, None] * (z + entropies_R[:, None])))
    else:
        grad_z = z.exp_().mul_(-g_R[:, None])
    inside_R, places_R = _inside(token_ids_R, first, grad_z.shape[1])
    grad_z.scatter_add_(1, places_R[:, None], torch.where(inside_R, g_R, 0.0)[:, None])
    if slope is not None:
        grad_z *= slope
    return grad_z.to(hidden_RD.dtype)


def _logits(
    hidden_RD: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor | None,
    temperature: float,
    shape: HeadShape,
) -> tuple[Tensor, Tensor | None]:
    """z of a chunk, float32 [R, C], and the slope of the cap there, 1 - tanh^2."""
    z = product(hidden_RD, weight_CD.T)
    if bias_C is not None:
        z += bias_C
    slope = None
    if shape.scale != 1:
        z *= shape.scale
    if shape.softcap is not None:
        z = z.div_(shape.softcap).tanh_()
        slope = 1 - z.square()
        z *= shape.softcap
    if temperature != 1:
        z /= temperature
    return z, slope


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product a b in float32, also of 16-bit numbers.

    Products of two bfloat16 numbers are exact in float32, and so are their sums kept: logits of 20
    that are rounded to bfloat16 would be off by up to 0.06 nats.
    """
    if a.dtype in (torch.float32, torch.float64):
        return (a @ b).float()
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def _inside(token_ids_R: Tensor, first: int, size: int) -> tuple[Tensor, Tensor]:
    """Whether a row's token lies in this chunk, and its place in it (any place if it does not)."""
    places_R = token_ids_R - first
    return (places_R >= 0) & (places_R < size), places_R.clamp(0, size - 1)


def _row_blocks(hidden_RD: Tensor) -> Iterator[slice]:
    return _blocks(len(hidden_RD), ROWS.get(hidden_RD.device.type, ROWS["other"]))


def _chunks(hidden_RD: Tensor, weight_VD: Tensor) -> Iterator[slice]:
    elements = CHUNK_ELEMENTS.get(hidden_RD.device.type, CHUNK_ELEMENTS["other"])
    return _blocks(len(weight_VD), max(1, elements // max(1, len(hidden_RD))))


def _blocks(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
