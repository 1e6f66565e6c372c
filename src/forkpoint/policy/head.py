"""A model's language-model head, read through transformers' public attributes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forkpoint.entropy.head import HeadShape, head_logits, head_stats
from forkpoint.entropy.logits import logits_stats
from forkpoint.errors import ModelError
from forkpoint.policy.body import body_of, causal_lm, config_field, name_of
from forkpoint.policy.checks import FAULTS, gap_nats, plain_stats, same_nats, some_ids

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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ln p(token), H and E of each row, as ``head_stats`` has them."""
        hidden_RD = hidden_RD.to(self.weight_VD.dtype)  # some 16-bit models end in float32 (Mamba)
        return head_stats(
            hidden_RD, self.weight_VD, self.bias_V, token_ids_R, temperature, self.shape
        )

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """The logits of each row, float32 [R, V], not rounded to the type of a 16-bit body."""
        hidden_RD = hidden_RD.to(self.weight_VD.dtype)
        return head_logits(hidden_RD, self.weight_VD, self.bias_V, self.shape)


def head_of(model: Any) -> Head:
    """The head of a causal language model, as its config describes it.

    Raises:
        ModelError: there is none, or it is more than one matrix.
    """
    layer = model.get_output_embeddings()
    if layer is None or hasattr(layer, "base_layer"):
        raise ModelError(
            f"{name_of(model)} has no head of its own, or one with an adapter (LoRA) on it: use "
            "--set training.gradient=dense"
        )
    config = causal_lm(model).config.get_text_config()
    scale = 1.0
    for name, multiplier in SCALES.items():
        if (value := config_field(config, name)) is not None:
            scale *= multiplier(value)
    return Head(
        weight_VD=layer.weight,
        bias_V=getattr(layer, "bias", None),
        shape=HeadShape(scale=scale, softcap=config_field(config, SOFTCAP)),
    )


@torch.no_grad()
def known_head(model: Any) -> Head | None:
    """The head, if on a few tokens it makes the model's own log-probabilities of its hidden states;
    None for a model that must be asked for the logits themselves."""
    ids_BL = some_ids(model, 1, 12)
    tokens_R = ids_BL[0, 1:].to(model.device)
    try:
        output = body_of(model)(input_ids=ids_BL.to(model.device), use_cache=False)
        head = head_of(model)
        found = logits_stats(head.logits(output.last_hidden_state[0, :-1]), tokens_R, 1.0)[:2]
    except (*FAULTS, ModelError):
        return None
    plain = tuple(x_BL[0] for x_BL in plain_stats(model, ids_BL))
    return head if gap_nats(found, plain) <= same_nats(model) else None
