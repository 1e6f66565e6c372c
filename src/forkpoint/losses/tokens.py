"""The loss on plain tensors, for anyone's training loop."""

from typing import Literal

import torch
from torch import Tensor

from forkpoint.config import parse_config
from forkpoint.config.stages import LossConfig
from forkpoint.errors import ConfigError
from forkpoint.losses.surrogates import NEEDS_WHOLE_SEQUENCES, SURROGATES

_DEFAULTS = LossConfig()


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    kept: Tensor,
    denominator: float | Tensor,
    *,
    surrogate: Literal["ppo_clip", "reinforce", "cispo"] = "ppo_clip",
    clip_low: float = _DEFAULTS.clip_low,
    clip_high: float = _DEFAULTS.clip_high,
    dual_clip: float | None = _DEFAULTS.dual_clip,
) -> Tensor:
    """Some sequences' share of a step's loss over the tokens that were kept.

        loss = - sum over kept t of surrogate_t / denominator

    Add up the shares of a step's micro-batches, or their gradients: with one denominator for all of
    them the sum is the same for every cut, which a mean over each micro-batch's own tokens is not.
    The number of the step's kept tokens, ``forks.sum()`` of all processes, gives the mean over
    forks of the paper (2506.01939, Eq. 5); the number of all its tokens gives TRL's.

    Example: of one token with ln pi = ln pi_old, advantage 1 and denominator 2 it is -0.5.

    Args:
        logprobs: [B, L], ln pi of each token under the present weights, with gradient.
        old_logprobs: [B, L], under the weights at the beginning of the step.
        advantages: [B], one for each sequence, or [B, L].
        kept: bool [B, L], what ``select_tokens`` gave; what stands elsewhere is not read.
        denominator: what the sum is divided by; the same for all shares of a step.
        surrogate: what is maximised for a token; see docs/selection.md.
        clip_low: the ratio's lower bound is 1 - clip_low.
        clip_high: its upper bound is 1 + clip_high.
        dual_clip: with ``ppo_clip``, bounds the loss where the advantage is negative.

    Returns:
        A scalar; 0 where nothing is kept.

    Raises:
        ConfigError: shapes that do not fit, a denominator that is not positive, a surrogate that
            is not there or reads whole sequences, or a bound that cannot be.
    """
    if surrogate in NEEDS_WHOLE_SEQUENCES:
        raise ConfigError(f"surrogate = {surrogate!r} reads whole sequences: not on plain tensors")
    shapes = [tuple(tensor.shape) for tensor in (logprobs, old_logprobs, kept)]
    if len(set(shapes)) > 1 or advantages.shape not in (logprobs.shape, logprobs.shape[:1]):
        raise ConfigError(
            f"log-probabilities, old ones and kept of shapes {', '.join(map(str, shapes))} with "
            f"advantages of {tuple(advantages.shape)}: they are [B, L], advantages [B] or [B, L]"
        )
    if not denominator > 0:
        raise ConfigError(f"denominator = {float(denominator)} is not positive: is nothing kept?")
    bounds = {"clip_low": clip_low, "clip_high": clip_high, "dual_clip": dual_clip}
    config = parse_config({"loss": {"surrogate": surrogate, **bounds}}, "policy_loss").loss
    chosen = kept.bool()
    if advantages.ndim < logprobs.ndim:
        advantages = advantages[:, None].expand_as(logprobs)
    sequence = torch.arange(len(logprobs), device=logprobs.device)[:, None].expand_as(logprobs)
    values_R, _ = SURROGATES[surrogate](
        logprobs[chosen],
        old_logprobs[chosen].detach(),
        advantages[chosen].detach(),
        sequence[chosen],
        config,
    )
    return -values_R.sum() / denominator
