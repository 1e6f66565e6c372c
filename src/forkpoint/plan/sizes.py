"""A model's sizes from its config alone: it is built of tensors without storage, and run once.

What autograd keeps of a forward pass is counted and not guessed, so every family of transformers
has its own number.
"""

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forkpoint.config.stages import LoraConfig, ModelConfig
from forkpoint.errors import ModelError
from forkpoint.policy.body import body_of, causal_lm, config_field
from forkpoint.policy.flops import body_shape
from forkpoint.policy.load import model_source
from forkpoint.policy.precision import layers_of

logger = logging.getLogger(__name__)

SHAPES = Path(__file__).with_name("shapes")
"""Configs of models that recipes name, for where the hub cannot be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of a model, as a run holds it."""

    parameters: int
    trained: int
    """Of these, those that get a gradient: all, or the adapters."""
    largest_layer: int
    """Parameters of the largest decoder layer."""
    outside: int
    """Parameters that belong to no decoder layer: embedding, head, last norm."""
    layers: int
    width: int
    vocabulary: int
    key_width: int
    """Numbers of keys and values that all layers keep of one token."""
    matrices: int
    """Weights of the layers' matrices that one token meets."""
    attention: int
    """Layers times attention width."""
    tied: bool
    """Whether head and embedding are one weight."""
    kept_bytes: int
    """What autograd keeps of a forward pass of the body, without checkpointing, weights aside."""
    kept_by_a_layer: int
    """The most that one layer has of it."""


def read_config(path: str) -> Any:
    """The config of a model: of a folder, a ``config.json``, or a hub id.

    Raises:
        ModelError: there is none, or the hub cannot be reached and the id is none of ``SHAPES``.
    """
    import transformers

    source = path if Path(path).suffix == ".json" else model_source(path)
    known = SHAPES / f"{path.replace('/', '--')}.json"
    try:
        return transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if not known.is_file():
            raise ModelError(
                f"model.path = {path!r}: its config cannot be read ({str(error).splitlines()[0]}); "
                "give a folder or a config.json by --set model.path=.."
            ) from error
        logger.warning("%s: the hub cannot be reached, its shape is taken from this package", path)
        return transformers.AutoConfig.from_pretrained(known, trust_remote_code=False)


def sizes_of(model: ModelConfig, tokens: int) -> Sizes:
    """
    Args:
        tokens: of the forward pass whose kept bytes are counted.

    Raises:
        ModelError: no config, or a class that does not run without storage.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    config = read_config(model.path)
    dtype = getattr(torch, model.compute_dtype)
    with FakeTensorMode():
        net = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=_unmasked_attention()
        )
        net.eval()
        try:
            kept, by_a_layer = _kept(net, tokens)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            raise ModelError(
                f"{type(net).__name__} cannot be planned: {str(error).splitlines()[0]}"
            ) from error
        return _counted(net, model.lora, kept, by_a_layer)


def _adapters(net: Any, lora: LoraConfig) -> int:
    """Parameters of the adapters: r (in + out) for each linear layer that gets some."""
    head = net.get_output_embeddings()
    chosen = [
        module
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not head
        and (lora.targets == "all-linear" or name.split(".")[-1] in lora.targets)
    ]
    return sum(lora.rank * (m.in_features + m.out_features) for m in chosen)


@cache
def _unmasked_attention() -> str:
    """sdpa without a mask, as rows of one sequence run: the mask that transformers makes where it
    cannot look at the numbers would be counted as well."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = "forkpoint_unmasked"
    AttentionInterface.register(name, ALL_ATTENTION_FUNCTIONS["sdpa"])
    AttentionMaskInterface.register(name, lambda *_, **__: None)
    return name


def _counted(net: Any, lora: LoraConfig | None, kept: int, by_a_layer: int) -> Sizes:
    config = causal_lm(net).config.get_text_config()
    layers = [sum(p.numel() for p in layer.parameters()) for layer in layers_of(net)]
    parameters = sum(p.numel() for p in net.parameters())
    matrices, attention = body_shape(body_of(net))
    heads = config_field(config, "num_attention_heads", 1)
    width = config_field(config, "hidden_size", 1)
    depth = config_field(config, "head_dim") or width // heads
    key_heads = config_field(config, "num_key_value_heads", heads)
    vocabulary = net.get_output_embeddings().weight.shape[0]
    return Sizes(
        parameters=parameters,
        trained=parameters if lora is None else _adapters(net, lora),
        largest_layer=max(layers, default=0),
        outside=parameters - sum(layers),
        layers=config_field(config, "num_hidden_layers", len(layers)),
        width=width,
        vocabulary=vocabulary,
        key_width=2 * config_field(config, "num_hidden_layers", 1) * key_heads * depth,
        matrices=matrices,
        attention=attention,
        tied=net.get_output_embeddings().weight is net.get_input_embeddings().weight,
        kept_bytes=kept,
        kept_by_a_layer=by_a_layer,
    )


def _kept(net: Any, tokens: int) -> tuple[int, int]:
    """Bytes that autograd keeps of one pass of the body over a row of tokens; most of one layer."""
    weights = {p.untyped_storage()._cdata for p in net.parameters()}
    found: dict[int, int] = {}
    held: list[Tensor] = []  # a storage that is freed would lend its name to another
    marks: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in found:
            found[storage._cdata] = storage.nbytes()
            held.append(tensor)
        return tensor

    handles = [
        layer.register_forward_hook(lambda *_: marks.append(sum(found.values())))
        for layer in layers_of(net)
    ]
    first: list[int] = []
    if handles:
        begin = layers_of(net)[0].register_forward_pre_hook(
            lambda *_: first.append(sum(found.values()))
        )
        handles.append(begin)
    ids = torch.zeros(1, tokens, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        body_of(net)(input_ids=ids, position_ids=torch.arange(tokens)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    steps = [b - a for a, b in zip([*first, *marks], marks, strict=False)]
    return sum(found.values()), max(steps, default=0)
