"""A model's language-model head, read through transformers' public attributes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forkpoint.entropy.head import HeadShape, head_stats
from forkpoint.errors import ModelError

SCALES = {
    "logit_scale": lambda value: value,  # Cohere
    "logits_scaling": lambda value: 1 / value,  # Granite
    "lm_head_multiplier": lambda value: value,  # Falcon-H1
}
"""Fields of a model's config -> what logits are multiplied by."""

SOFTCAP = "final_logit_softcapping"  # Gemma


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The last matrix and what is done to its output. Made by ``head_of``."""

    weight_VD: Tensor
    bias_V: Tensor | None
    shape: HeadShape

    def stats(
        self, hidden_RD: Tensor, token_ids_R: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """ln p(token) and H of each row, float32 [R] nats, without storing logits."""
        return head_stats(
            hidden_RD, self.weight_VD, self.bias_V, token_ids_R, temperature, self.shape
        )


def head_of(model: Any) -> Head:
    """The head of a causal language model, as its config describes it."""
    layer = model.get_output_embeddings()
    config = model.config.get_text_config()
    scale = 1.0
    for name, multiplier in SCALES.items():
        if (value := getattr(config, name, None)) is not None:
            scale *= multiplier(value)
    return Head(
        weight_VD=layer.weight,
        bias_V=getattr(layer, "bias", None),
        shape=HeadShape(scale=scale, softcap=getattr(config, SOFTCAP, None)),
    )


def check_head(model: Any) -> None:
    """Refuse a model whose log-probabilities are not what ``head_of`` makes of its hidden states.

    Raises:
        ModelError: naming the class; its logits are changed in a way this package does not know.
    """
    name = type(model).__name__
    if model.get_output_embeddings() is None or model.base_model is model:
        raise ModelError(f"{name} has no separate head: use --set training.gradient=dense")
    ids = torch.arange(1, 5, device=model.device)[None]
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        logits = model(input_ids=ids, use_cache=False).logits[0]
        ours, _ = head_of(model).stats(hidden, ids[0], 1.0)
    theirs = logits.float().log_softmax(-1).gather(1, ids[0][:, None])[:, 0]
    bound = 1e-3 if hidden.dtype == torch.float32 else 0.1
    if not (ours - theirs).abs().max() <= bound:
        raise ModelError(
            f"{name} changes its logits after the head in a way this package does not know: sparse "
            "and local gradients would be wrong; use --set training.gradient=dense"
        )
