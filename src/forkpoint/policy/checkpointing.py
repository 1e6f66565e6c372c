"""Gradient checkpointing: a layer keeps its input only, and is run once more in the backward pass.

transformers' own switch works in training mode alone, where dropout, router jitter and dropped
layers strike: the policy would not be the model that sampled. Here the model stays in eval mode.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.checkpoint import checkpoint

from forkpoint.errors import ModelError
from forkpoint.policy.body import body_of, name_of

_CHECKPOINTED: WeakSet[Any] = WeakSet()
"""Bodies of models."""


def enable_checkpointing(model: Any) -> None:
    """Checkpoint every layer that transformers would.

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
