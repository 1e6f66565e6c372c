"""The parts of a causal language model, also where an adapter's wrapper stands around it;
how long its sequences may be; gradient checkpointing."""

from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.checkpoint import checkpoint

from forkpoint.errors import ModelError


def causal_lm(model: Any) -> Any:
    """The model of transformers itself, which PEFT's wrapper holds inside."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def body_of(model: Any) -> Any:
    """The transformer without its language-model head: token ids in, ``last_hidden_state`` out.

    PEFT puts adapters into the transformer's own modules, so they have a part in it. The wrapper's
    attribute ``base_model`` is not it.
    """
    inner = causal_lm(model)
    if inner.base_model is inner:  # a few classes name it otherwise than they declare (Llama 4)
        return getattr(inner, "model", inner)
    return inner.base_model


def name_of(model: Any) -> str:
    """The class of transformers, for messages."""
    return type(causal_lm(model)).__name__


def config_field(config: Any, name: str, default: Any = None) -> Any:
    """A field of a model's config, ``default`` if it is missing, None, or differs between layers
    (for which transformers raises a ``RuntimeError``)."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:
        return default
    return default if value is None else value


def exact_length(model: Any) -> tuple[int, str] | None:
    """Tokens up to which a sequence's numbers are its own, and the config's field that says so.

    Longrope and dynamic NTK change every position's rotary embedding, and Doge drops keys, once
    the longest sequence *of the batch* is longer than a length in the config. Beyond it no
    gradient is defined: the loss depends on how the batch is cut.

    Returns:
        None for models that have no such length.
    """
    config = causal_lm(model).config.get_text_config()
    found = [(config_field(config, "keep_window_size"), "keep_window_size")]
    rope = config_field(config, "rope_parameters", {})
    for kind in [rope, *(part for part in rope.values() if isinstance(part, dict))]:
        name = str(kind.get("rope_type"))
        if name == "longrope":
            original = kind.get("original_max_position_embeddings")
            original = original or config_field(config, "original_max_position_embeddings")
            found.append((original, "original_max_position_embeddings, longrope"))
        elif "dynamic" in name:
            longest = config_field(config, "max_position_embeddings")
            found.append((longest, "max_position_embeddings, dynamic NTK"))
    return min((pair for pair in found if pair[0] is not None), default=None)


def check_length(model: Any, tokens: int) -> None:
    """Refuse sequences whose numbers would depend on the rest of their batch.

    Args:
        tokens: of the longest sequence, prompt and completion.

    Raises:
        ModelError: naming the class and the length.
    """
    limit = exact_length(model)
    if limit is not None and tokens > limit[0]:
        raise ModelError(
            f"{name_of(model)}: beyond {limit[0]} tokens ({limit[1]}) a sequence's numbers depend "
            f"on the longest one of its batch, and this run has sequences of up to {tokens}: "
            "lower rollout.max_new_tokens or leave out long prompts"
        )


def context_length(model: Any) -> int | None:
    """How many tokens a model reads by its configuration; None if that states no limit.

    ``max_position_embeddings``, or what scaled rotary positions are stretched to: the original
    length times the factor. With learned positions more is impossible, with rotary ones it is what
    the model was not trained for; both are refused, for both give numbers nobody should train on.
    """
    config = causal_lm(model).config.get_text_config()
    limit = config_field(config, "max_position_embeddings")
    scaling = config_field(config, "rope_parameters", {})
    original, factor = (
        scaling.get(name) for name in ("original_max_position_embeddings", "factor")
    )
    stretched = [int(original * factor)] if original and factor else []
    return max([limit, *stretched]) if limit else None


def longest_readable(model: Any) -> int | None:
    """Tokens that a model has positions for, and numbers of their own; None if nothing says."""
    limit = exact_length(model)
    lengths = [context_length(model), limit and limit[0]]
    return min((n for n in lengths if n and n > 0), default=None)


_CHECKPOINTED: WeakSet[Any] = WeakSet()
"""Bodies of models."""


def enable_checkpointing(model: Any) -> None:
    """Let every layer that transformers would checkpoint keep its input only, and run once more in
    the backward pass.

    transformers' own switch works in training mode alone, in which dropout, router jitter and
    dropped layers would make the policy another model than the one that sampled. Here the model
    stays in eval mode.

    Raises:
        ModelError: this class has none.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in body_of(model).modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"{name_of(model)} has no layers that can be run again in the backward pass; use "
            "--set model.gradient_checkpointing=false"
        )
    for layer in layers:
        layer.forward = _run_again(layer.forward)
    _CHECKPOINTED.add(body_of(model))


def runs_again(model: Any) -> bool:
    """Whether the layers of a model run once more in the backward pass."""
    return body_of(model) in _CHECKPOINTED


def _run_again(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Nothing is drawn in eval mode, so there is no random state to restore.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return checkpointed
