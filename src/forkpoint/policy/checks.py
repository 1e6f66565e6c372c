"""What is checked of every model when it is loaded: a sequence's numbers must be its own."""

import logging
from typing import Any

import torch
from torch import Tensor

from forkpoint.entropy.logits import logits_stats
from forkpoint.errors import ModelError
from forkpoint.policy.body import causal_lm, config_field, longest_readable, name_of

logger = logging.getLogger(__name__)

SAME_NATS = 1e-3
"""Mean difference of log-probabilities and entropies up to which two ways to compute them are the
same in float32. A mean, for in a mixture of experts rounding now and then sends a token to another
expert; a wrong mask or a lost state is wrong nearly everywhere."""

SAME_NATS_16_BIT = 0.2
"""The same for 16-bit dtypes, whose rounding alone is some hundredths of a nat, and above 0.1 in a
deep mixture of experts."""

SAME_NUMBERS_NATS = {"float32": (1e-3, 1e-3), "bfloat16": (0.05, 1.0)}
"""``model.compute_dtype`` -> how far, on average and at most over one sequence, a sampler's
log-probabilities and entropies may be from the policy's to stand in for them. Any two bfloat16
passes of different shapes differ by their rounding: see docs/performance.md."""

FAULTS = (
    *(ValueError, RuntimeError, TypeError, AttributeError, KeyError, IndexError),
    *(AssertionError, NotImplementedError, StopIteration),
)
"""What a model of transformers may raise when it is called in a way it does not support."""

SOFTCAP = "attn_logit_softcapping"
"""The config's field for a cap on attention scores (Gemma 2), which sdpa cannot apply."""


def same_nats(model: Any) -> float:
    """The mean difference, in nats, that rounding alone may make."""
    return SAME_NATS_16_BIT if model.dtype.itemsize < 4 else SAME_NATS


def gap_nats(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Mean absolute difference of log-probabilities and entropies; inf where one is nan.

    Args:
        found, expected: (ln p, H) of the same tokens, each [R].
    """
    gaps = [(a.cpu() - b.cpu()).abs().mean() for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(gaps).max().nan_to_num(nan=torch.inf))


def some_ids(model: Any, *shape: int) -> Tensor:
    """Token ids without a pattern, the same in every process."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(7)
    return torch.randint(min(3, vocabulary - 1), vocabulary, shape, generator=generator)


@torch.no_grad()
def plain_stats(model: Any, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
    """ln p of each row's next token, and H: [B, L - 1] each, by one full pass."""
    logits_BLV = model(input_ids=ids_BL.to(model.device), use_cache=False).logits[:, :-1]
    tokens_R = ids_BL[:, 1:].flatten().to(logits_BLV.device)
    logprobs_R, entropies_R, _ = logits_stats(logits_BLV.flatten(0, 1), tokens_R, 1.0)
    return logprobs_R.view(len(ids_BL), -1), entropies_R.view(len(ids_BL), -1)


def check_rows(model: Any) -> None:
    """Refuse a model whose numbers change with what stands behind or beside a sequence.

    Raises:
        ModelError: naming the class: it is not causal, or depends on its batch.
    """
    ids_BL = _two_rows(model)
    short = ids_BL.shape[1] // 2
    ids_BL[0, short:] = 0
    try:
        alone = plain_stats(model, ids_BL[:1, :short])
        beside = plain_stats(model, ids_BL)
    except FAULTS as error:
        raise ModelError(
            f"{name_of(model)} cannot be run on token ids alone: {first_line(error)}"
        ) from error
    gap = gap_nats(tuple(x[:1, : short - 1] for x in beside), alone)
    if not gap <= same_nats(model):
        raise ModelError(
            f"{name_of(model)} gives a sequence other numbers beside a longer one ({gap:.2g} nats):"
            " it is not causal or depends on its batch, and cannot be trained or analysed here"
        )


def settle_attention(model: Any) -> None:
    """Put eager attention in sdpa's place where the two differ, and log a line that says so."""
    inner = causal_lm(model)
    config = inner.config.get_text_config()
    if config._attn_implementation != "sdpa":
        return
    ids_BL = _two_rows(model)
    fused = plain_stats(model, ids_BL)
    inner.set_attn_implementation("eager")
    gap = gap_nats(fused, plain_stats(model, ids_BL))
    cap = config_field(config, SOFTCAP)
    if cap is None and gap <= same_nats(model):
        inner.set_attn_implementation("sdpa")
        return
    reason = f"sdpa cannot cap attention scores ({SOFTCAP} = {cap})" if cap else "sdpa differs"
    logger.warning("%s: %s (%.2g nats): eager attention is used", name_of(model), reason, gap)


def _two_rows(model: Any) -> Tensor:
    """Token ids int64 [2, L], few: a check runs them on every model that is loaded."""
    return some_ids(model, 2, min(24, longest_readable(model) or 24))


def first_line(error: BaseException) -> str:
    """What went wrong, without torch's pages about it."""
    return str(error).strip().split("\n")[0] or type(error).__name__
