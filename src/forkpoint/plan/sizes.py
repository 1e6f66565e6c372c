"""A model's sizes from its config alone: it is built of tensors without storage, and run once.

What autograd keeps of a forward pass is counted and not guessed, so every family of transformers
has its own number.
"""

import logging
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forkpoint.config.stages import LoraConfig, ModelConfig
from forkpoint.errors import ModelError
from forkpoint.policy.body import body_of, causal_lm, config_field
from forkpoint.policy.checks import FAULTS, first_line
from forkpoint.policy.flops import body_shape
from forkpoint.policy.load import model_source
from forkpoint.policy.lora import add_adapters
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
    from huggingface_hub.errors import StrictDataclassError

    source = path if Path(path).suffix == ".json" else model_source(path)
    known = SHAPES / f"{path.replace('/', '--')}.json"
    try:
        return transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        if not known.is_file():
            raise ModelError(
                f"model.path = {path!r}: its config cannot be read ({first_line(error)}); "
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
    config = read_config(model.path)
    dtype = getattr(torch, model.compute_dtype)
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # torch writes pages about what does not run without storage
    try:
        try:
            return _measured(config, dtype, model.lora, tokens)
        except FAULTS:
            if dtype == torch.bfloat16:
                raise
        # Products over experts are known without storage in 16 bits only.
        half = _measured(config, torch.bfloat16, model.lora, tokens)
        return replace(
            half, kept_bytes=2 * half.kept_bytes, kept_by_a_layer=2 * half.kept_by_a_layer
        )
    except FAULTS as error:
        kind = (getattr(config, "architectures", None) or [type(config).__name__])[0]
        raise ModelError(f"{kind} cannot be planned: {first_line(error)}") from error
    finally:
        logging.disable(before)


def _measured(config: Any, dtype: torch.dtype, lora: LoraConfig | None, tokens: int) -> Sizes:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    with FakeTensorMode():
        net = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=_unmasked_attention()
        ).eval()
        found = _counted(net)
        key_width = _key_width(net, found.key_width)
        kept, by_a_layer = _kept(net, tokens)
    return replace(
        found,
        trained=found.parameters if lora is None else _adapters(config, lora),
        key_width=key_width,
        kept_bytes=kept,
        kept_by_a_layer=by_a_layer,
    )


def _adapters(config: Any, lora: LoraConfig) -> int:
    """Parameters of the adapters that peft makes for this model."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(config)
        add_adapters(net, lora, None)
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def _key_width(net: Any, otherwise: int) -> int:
    """Numbers that a row's cache grows by with each token; ``otherwise`` if it cannot be run."""
    sizes = []
    try:
        for length in (64, 128):
            ids = torch.zeros(1, length, dtype=torch.int64)
            with torch.no_grad():
                output = body_of(net)(input_ids=ids, use_cache=True)
            cache = getattr(output, "past_key_values", None)
            if cache is None:  # states alone
                return 0
            held = [value for layer in cache.layers for value in vars(layer).values()]
            sizes.append(sum(x.untyped_storage().nbytes() for x in held if torch.is_tensor(x)))
    except FAULTS:
        return otherwise
    return max(0, sizes[1] - sizes[0]) // (64 * net.dtype.itemsize)


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


def _counted(net: Any) -> Sizes:
    """What can be said without running it."""
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
        trained=parameters,
        largest_layer=max(layers, default=0),
        outside=parameters - sum(layers),
        layers=config_field(config, "num_hidden_layers", len(layers)),
        width=width,
        vocabulary=vocabulary,
        key_width=2 * config_field(config, "num_hidden_layers", 1) * key_heads * depth,
        matrices=matrices,
        attention=attention,
        tied=net.get_output_embeddings().weight is net.get_input_embeddings().weight,
        kept_bytes=0,
        kept_by_a_layer=0,
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
