"""Stage b: the head without logits against the head with them.

R rows of hidden states, D wide, against a vocabulary of V words. Ours computes 8 R V D operations,
forward, logits once more, two products backward; full logits are 6 R V D, and R x V numbers stored
several times.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device import Device
from benchmarks.gpu.lines import Lines, Skip
from forkpoint.entropy.head import head_stats

VOCABULARY = 151_936
WIDTHS = (2048, 4096)
ROWS = (4096, 8192, 16_384, 32_768)
BYTES_A_LOGIT = 18
"""That full logits hold at once: themselves in 16 bits; as float32, their softmax's logarithm, the
gradient of each."""

Head = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(hidden_RD, weight_VD, token_ids_R) -> ln p and H, each float32 [R]."""


def head(lines: Lines, device: Device) -> None:
    """Rates of the device, equality, then time and memory of every size."""
    vocabulary = 1000 if device.tiny else VOCABULARY
    widths, sizes = ((16,), (64, 128)) if device.tiny else (WIDTHS, ROWS)
    lines.measure("matrix products, TFLOP/s", lambda: dict(device.rates))
    for dtype in (torch.float32, torch.bfloat16):
        name = f"head = full logits, {_name(dtype)}"
        lines.measure(
            name, lambda dtype=dtype: equality(device, sizes[0], widths[0], vocabulary, dtype)
        )
    for width in widths:
        for rows in sizes:
            inputs = (device, rows, width, vocabulary)
            what = f"{rows} rows x {width}"
            lines.measure(f"ours, {what}", lambda i=inputs: cost(ours, 8, *i))
            lines.measure(f"full logits, {what}", lambda i=inputs: cost(full, 6, *i))


def ours(hidden_RD: Tensor, weight_VD: Tensor, token_ids_R: Tensor) -> tuple[Tensor, Tensor]:
    """The package's."""
    return head_stats(hidden_RD, weight_VD, None, token_ids_R, 1.0)[:2]


def full(hidden_RD: Tensor, weight_VD: Tensor, token_ids_R: Tensor) -> tuple[Tensor, Tensor]:
    """Every logit, softmax in float32, entropies without gradient."""
    logp_RV = (hidden_RD @ weight_VD.T).float().log_softmax(-1)
    with torch.no_grad():
        entropies_R = -(logp_RV.exp() * logp_RV).sum(-1)
    return logp_RV.gather(1, token_ids_R[:, None])[:, 0], entropies_R


def cost(
    way: Head, products: int, device: Device, rows: int, width: int, vocabulary: int
) -> dict[str, Any]:
    """Seconds forward and of both ways, memory beyond inputs, share of the device's rate.

    Args:
        products: operations over R V D.
    """
    if way is full and rows * vocabulary * BYTES_A_LOGIT / 1e9 > device.free_gb():
        raise Skip(
            f"full logits need about {rows * vocabulary * BYTES_A_LOGIT / 1e9:.0f} GB and "
            f"{device.free_gb():.0f} GB are free"
        )
    inputs = _inputs(device, rows, width, vocabulary, torch.bfloat16)
    both_ways(way, *inputs)  # the first call loads what it needs
    before = device.used_gb()
    device.reset_peak()
    seconds = device.seconds(lambda: both_ways(way, *inputs), 3)
    peak = device.peak_gb()
    with torch.no_grad():
        forward = device.seconds(lambda: way(*inputs), 3)
    tflops = products * rows * vocabulary * width / seconds / 1e12
    return {
        "seconds": seconds,
        "forward_seconds": forward,
        "memory_gb": peak - before,
        "tflops": tflops,
        "share_of_rate": tflops / device.rates["bfloat16"],
    }


def equality(
    device: Device, rows: int, width: int, vocabulary: int, dtype: torch.dtype
) -> dict[str, Any]:
    """The largest difference of results and the relative one of gradients."""
    results = []
    for way in (ours, full):
        inputs = _inputs(device, rows, width, vocabulary, dtype)
        found = both_ways(way, *inputs)
        results.append((*found, inputs[0].grad, inputs[1].grad))
    (logp_a, entropy_a, *grads_a), (logp_b, entropy_b, *grads_b) = results
    found = {
        "logprob_nats": float((logp_a - logp_b).abs().max()),
        "entropy_nats": float((entropy_a - entropy_b).abs().max()),
        "gradient_error": max(
            float((a.float() - b.float()).norm() / b.float().norm())
            for a, b in zip(grads_a, grads_b, strict=True)
        ),
    }
    if dtype == torch.float32:
        found["bounds"] = {"logprob_nats": 1e-3, "entropy_nats": 1e-3, "gradient_error": 1e-4}
    return found


def both_ways(
    way: Head, hidden_RD: Tensor, weight_VD: Tensor, token_ids_R: Tensor
) -> tuple[Tensor, Tensor]:
    """Forward and backward, the gradients left where they belong."""
    hidden_RD.grad = weight_VD.grad = None
    logprobs_R, entropies_R = way(hidden_RD, weight_VD, token_ids_R)
    logprobs_R.mean().backward()
    return logprobs_R.detach(), entropies_R.detach()


def _inputs(
    device: Device, rows: int, width: int, vocabulary: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden_RD = torch.randn(rows, width, device=device.name, dtype=dtype)
    weight_VD = torch.randn(vocabulary, width, device=device.name, dtype=dtype) * width**-0.5
    token_ids_R = torch.randint(vocabulary, (rows,), device=device.name)
    return hidden_RD.requires_grad_(), weight_VD.requires_grad_(), token_ids_R


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
