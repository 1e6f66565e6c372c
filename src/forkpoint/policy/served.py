"""The weights as others read them: put together, with adapters merged."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forkpoint.policy.body import causal_lm
from forkpoint.policy.precision import gathered

BASE = re.compile(r"(\.base_layer)+(?=\.|$)")
"""In the names of what peft has wrapped, once or more."""
DOWN, UP = ".lora_A.", ".lora_B."
"""In the names of A and B."""


def served_weights(model: Any, dtype: torch.dtype, *, keep: bool = True) -> dict[str, Tensor]:
    """Every weight under the name it has without adapters, W + scale B A for those that have some.

    Several processes put each tensor together in turn.

    Args:
        keep: whether this process wants them; the others get an empty dictionary.
    """
    held = gathered(model.state_dict(keep_vars=True), keep=lambda name: keep)
    found = {
        BASE.sub("", name): tensor
        for name, tensor in held.items()
        if DOWN not in name and UP not in name
    }
    for name, layer in model.named_modules():
        if keep and hasattr(layer, "lora_A"):
            for adapter, scale in layer.scaling.items():
                down, up = (held[f"{name}{part}{adapter}.weight"].float() for part in (DOWN, UP))
                wrapped = f"{BASE.sub('', name)}.{getattr(layer, 'parameter_name', 'weight')}"
                found[wrapped] = found[wrapped].float() + scale * _product(layer, down, up)
    numbers = {id(tensor): tensor.detach().cpu() for tensor in found.values()}  # tied ones stay so
    for key, tensor in numbers.items():
        numbers[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return {name: numbers[id(tensor)] for name, tensor in found.items()}


def _product(layer: Any, down: Tensor, up: Tensor) -> Tensor:
    """B A, laid out as the layer keeps W."""
    experts = getattr(layer, "num_experts", 1)
    if experts > 1:  # all of them in one parameter
        down_ERI = down.view(experts, -1, down.shape[-1])
        up_ORE = up.view(len(up), -1, experts)
        swapped = getattr(layer, "_did_swap_in_out_features", False)
        return torch.einsum(f"ore,eri->{'eoi' if swapped else 'eio'}", up_ORE, down_ERI)
    product = up @ down
    return product.T if getattr(layer, "fan_in_fan_out", False) else product  # GPT-2's W


def write_served(
    folder: Path, model: Any, weights: Mapping[str, Tensor], tokenizer: Any, *, untie: bool = True
) -> None:
    """Write them as a model of transformers.

    Args:
        weights: from ``served_weights``.
        untie: give a head that is tied to the embedding numbers of its own: a server that reloads
            the files of a tied model may keep the head it had.
    """
    from transformers import AutoModelForCausalLM

    inner = causal_lm(model)
    config = copy.deepcopy(inner.config)
    shared = len({tensor.data_ptr() for tensor in weights.values()}) < len(weights)
    config.tie_word_embeddings = config.tie_word_embeddings and shared and not untie
    config.dtype = next(t.dtype for t in weights.values() if t.is_floating_point())
    with torch.device("meta"):  # its class knows how its files are written; no memory is taken
        skeleton = AutoModelForCausalLM.from_config(config)
    own, seen = dict(weights), set[int]()
    for name, tensor in weights.items():
        if untie and tensor.data_ptr() in seen:
            own[name] = tensor.clone()  # else the file would hold one of the two
        seen.add(tensor.data_ptr())
    skeleton.save_pretrained(folder, state_dict=own)
    tokenizer.save_pretrained(folder)
