"""Entropy and log-probability straight from hidden states, without ever storing the logits.

The language-model head is the widest matrix of a model: for R rows its logits are R x V numbers
(V is 150 thousand for Qwen3). Here rows go through it a chunk at a time; the forward pass keeps
two numbers per row, and the backward pass computes a chunk's logits again to get their gradient:

    z = (h W^T + b) / T,   p = softmax(z)
    d ln p_y / dz = onehot(y) - p          d H / dz = -p (ln p + H)
"""

from typing import Any

import torch
from torch import Tensor

from forkpoint.entropy.logits import entropy_of_logprobs

CHUNK_ELEMENTS = 2**24
"""Logits held at once (64 MiB of float32). Changes memory and speed, results only by rounding."""


def head_stats(
    hidden_RD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    token_ids_R: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """ln p(token) and H of each row, float32 [R] in nats.

    Differentiable once in ``hidden_RD``, ``weight_VD`` and ``bias_V``, through both results.

    Args:
        hidden_RD: what the head reads, in the head's dtype; softmax is done in float32.
        temperature: of sampling; logits are divided by it.
    """
    outputs: Any = _HeadStats.apply(hidden_RD, weight_VD, bias_V, token_ids_R, temperature)
    return outputs


class _HeadStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        token_ids_R: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        logprobs_R = hidden_RD.new_empty(len(hidden_RD), dtype=torch.float32)
        entropies_R = torch.empty_like(logprobs_R)
        for rows in _chunks(len(hidden_RD), len(weight_VD)):
            logp_RV = _logprobs(hidden_RD[rows], weight_VD, bias_V, temperature)
            logprobs_R[rows] = logp_RV.gather(-1, token_ids_R[rows, None])[:, 0]
            entropies_R[rows] = entropy_of_logprobs(logp_RV)
        ctx.save_for_backward(hidden_RD, weight_VD, bias_V, token_ids_R, entropies_R)
        ctx.temperature = temperature
        return logprobs_R, entropies_R

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprobs_R, grad_entropies_R = grad_outputs
        hidden_RD, weight_VD, bias_V, token_ids_R, entropies_R = ctx.saved_tensors
        grad_hidden_RD = torch.empty_like(hidden_RD)
        # Sums over chunks are kept in float32: a bfloat16 running sum would lose small terms.
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        grad_bias_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
        for rows in _chunks(len(hidden_RD), len(weight_VD)):
            logp_RV = _logprobs(hidden_RD[rows], weight_VD, bias_V, ctx.temperature)
            grad_z_RV = _logits_gradient(
                logp_RV,
                token_ids_R[rows],
                entropies_R[rows],
                grad_logprobs_R[rows],
                grad_entropies_R[rows],
            )
            grad_z_RV = (grad_z_RV / ctx.temperature).to(hidden_RD.dtype)
            grad_hidden_RD[rows] = grad_z_RV @ weight_VD
            if ctx.needs_input_grad[1]:
                grad_weight_VD += grad_z_RV.T @ hidden_RD[rows]
            if grad_bias_V is not None:
                grad_bias_V += grad_z_RV.float().sum(0)
        return (
            grad_hidden_RD,
            grad_weight_VD.to(weight_VD.dtype) if ctx.needs_input_grad[1] else None,
            None if bias_V is None or grad_bias_V is None else grad_bias_V.to(bias_V.dtype),
            None,
            None,
        )


def _logprobs(
    hidden_RD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, temperature: float
) -> Tensor:
    """log softmax of a chunk of rows: float32 [rows, V]."""
    logits_RV = torch.nn.functional.linear(hidden_RD, weight_VD, bias_V)
    return (logits_RV.float() / temperature).log_softmax(-1)


def _logits_gradient(
    logp_RV: Tensor,
    token_ids_R: Tensor,
    entropies_R: Tensor,
    grad_logprobs_R: Tensor,
    grad_entropies_R: Tensor,
) -> Tensor:
    """d loss / dz of a chunk: g (onehot - p) - e p (ln p + H), with g, e the rows' gradients."""
    p_RV = logp_RV.exp()
    grad_z_RV = -p_RV * grad_logprobs_R[:, None]
    grad_z_RV.scatter_add_(1, token_ids_R[:, None], grad_logprobs_R[:, None])
    if grad_entropies_R.count_nonzero():  # most losses leave the entropy alone
        finite_RV = logp_RV.clamp(min=torch.finfo(torch.float32).min)
        grad_z_RV -= p_RV * (finite_RV + entropies_R[:, None]) * grad_entropies_R[:, None]
    return grad_z_RV


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    step = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
