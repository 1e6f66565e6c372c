"""The weights as an inference server reads them: whole, merged, with a head of their own."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forkpoint.policy.body import causal_lm
from forkpoint.policy.precision import gathered

BASE, DOWN, UP = ".base_layer.", ".lora_A.", ".lora_B."
"""In the names of parameters that peft has wrapped: W, A and B."""


def served_weights(model: Any, dtype: torch.dtype, *, keep: bool = True) -> dict[str, Tensor]:
    """Every weight under the name it has without adapters, W + scale B A for those that have some.

    Several processes put each tensor together in turn.

    Args:
        keep: whether this process wants them; the others get an empty dictionary.
    """
    held = gathered(model.state_dict(keep_vars=True), keep=keep)
    found = {
        name.replace(BASE, "."): tensor
        for name, tensor in held.items()
        if DOWN not in name and UP not in name
    }
    for name, layer in model.named_modules():
        if keep and hasattr(layer, "lora_A"):
            for adapter, scale in layer.scaling.items():
                down, up = (held[f"{name}{part}{adapter}.weight"].float() for part in (DOWN, UP))
                product = scale * (up @ down)
                weight = found[f"{name}.weight"]
                turned = getattr(layer, "fan_in_fan_out", False)  # GPT-2 keeps W transposed
                found[f"{name}.weight"] = weight.float() + (product.T if turned else product)
    return {
        name: tensor.detach().to("cpu", dtype) if tensor.is_floating_point() else tensor.cpu()
        for name, tensor in found.items()
    }


def write_served(folder: Path, model: Any, weights: Mapping[str, Tensor], tokenizer: Any) -> None:
    """Write them as a model of transformers whose head is not tied to its embedding.

    A server that reloads the files of a tied model may keep the head it had: it is written out.

    Args:
        weights: from ``served_weights``.
    """
    from transformers import AutoModelForCausalLM

    inner = causal_lm(model)
    config = copy.deepcopy(inner.config)
    config.tie_word_embeddings = False
    config.dtype = next(t.dtype for t in weights.values() if t.is_floating_point())
    with torch.device("meta"):  # its class knows how its files are written; no memory is taken
        skeleton = AutoModelForCausalLM.from_config(config)
    seen: set[int] = set()
    own = {}
    for name, tensor in weights.items():  # a file holds each name's numbers by themselves
        own[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    skeleton.save_pretrained(folder, state_dict=own)
    tokenizer.save_pretrained(folder)
