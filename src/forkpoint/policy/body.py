"""The parts of a causal language model, also where an adapter's wrapper stands around it."""

from typing import Any


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
