"""Loading a causal language model and its tokenizer, and refusing what cannot be trained right."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from forkpoint.config.stages import ModelConfig
from forkpoint.errors import ModelError
from forkpoint.hub import prepare_hub
from forkpoint.policy.body import enable_checkpointing, name_of
from forkpoint.policy.checks import check_rows, first_line, settle_attention
from forkpoint.policy.lora import add_adapters, base_of, found_adapters
from forkpoint.ranks import local_rank, world_size

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model with what belongs to it. Made by ``load_model``; read by engines and ``policy``."""

    model: Any
    """A transformers causal LM in eval mode (no dropout: the policy must be one function)."""
    tokenizer: Any
    eos_ids: tuple[int, ...]
    """Tokens that end a completion."""


def load_model(
    config: ModelConfig, *, weights: Path | None = None, trained: bool = False
) -> LoadedModel:
    """Load a model from the shipped laboratory, a folder or a hub id.

    Only safetensors are read and no code of the repository is run.

    Args:
        weights: a folder with newer weights of the same model (a checkpoint).
        trained: float32 parameters whatever ``compute_dtype`` says, and on the host where several
            processes share them: ``policy.precision.compute_in`` puts both right.

    Raises:
        ModelError: no such folder, no tokenizer, no end-of-sequence token, a vocabulary larger
            than the head, a device that is not there; a class whose numbers for a sequence depend
            on what stands beside it, or that has no layers to checkpoint.
    """
    import transformers
    from safetensors import SafetensorError

    device = device_of(config.device)
    if trained and config.attention == "flex_attention" and device.type == "cpu":
        raise ModelError(
            "FlexAttention has no backward pass on a CPU: use --set model.attention=sdpa"
        )
    source = model_source(config.path)
    adapters = found_adapters(Path(weights or source))
    adapts = trained and config.lora is not None
    # FSDP wants one type for all parameters of a layer; one process needs no FSDP for adapters.
    whole = trained and not (adapts and world_size() == 1)
    read: Any = partial(
        transformers.AutoModelForCausalLM.from_pretrained,
        str(weights or source if adapters is None else source if weights else base_of(adapters)),
        dtype=torch.float32 if whole else getattr(torch, config.compute_dtype),
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    try:
        try:
            model, found = read(attn_implementation=config.attention)
        except ValueError:  # among others: a class that knows no sdpa
            if config.attention != "sdpa":
                raise
            model, found = read(attn_implementation="eager")
            logger.warning("%s knows no sdpa attention: eager is used", name_of(model))
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"model.path = {config.path!r} cannot be loaded: {first_line(error)}"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"model.path = {config.path!r} has no weights for {missing[0]} (and {len(missing) - 1} "
            "more): transformers would make them up"
        )
    if adapters is not None or (trained and config.lora is not None):
        add_adapters(model, config.lora if trained else None, adapters)
    tokenizer = _load_tokenizer(source, config.path, model)
    # Weights come memory-mapped from the file; fresh memory has the same alignment in every
    # process, on which the last bit of a vectorised sum can depend.
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    shared = trained and world_size() > 1
    torch.nn.Module.to(model, torch.device("cpu") if shared else device).eval()
    check_rows(model)
    settle_attention(model)
    if config.gradient_checkpointing:
        enable_checkpointing(model)
    return LoadedModel(
        model=model, tokenizer=tokenizer, eos_ids=_eos_ids(model, tokenizer, config.path)
    )


def model_source(path: str) -> str:
    """A folder or hub id; ``lab:walk`` and ``lab:game`` are shipped with the package."""
    if path == "lab" or path.startswith("lab:"):
        from forkpoint.lab import BASE_POLICIES

        if path not in BASE_POLICIES:
            raise ModelError(f"model.path = {path!r}: shipped are {' and '.join(BASE_POLICIES)}")
        return str(BASE_POLICIES[path])
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if path.startswith((".", "/", "~", "models/")):
            raise ModelError(f"model.path = {path!r}: there is no such folder")
        prepare_hub()
    return str(folder)


def _load_tokenizer(source: str, path: str, model: Any) -> Any:
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise ModelError(
            f"model.path = {path!r} has no tokenizer that can be loaded (tokenizer.json is "
            f"missing?): {first_line(error)}"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # for some models one is made up
        raise ModelError(f"model.path = {path!r} has no tokenizer: tokenizer.json is missing")
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > vocabulary:
        raise ModelError(
            f"model.path = {path!r}: the tokenizer knows {len(tokenizer)} tokens but the model's "
            f"head has {vocabulary} rows; they do not belong together"
        )
    return tokenizer


def _eos_ids(model: Any, tokenizer: Any, path: str) -> tuple[int, ...]:
    declared = getattr(model.generation_config, "eos_token_id", None)
    ids = declared if isinstance(declared, list) else [declared]
    found = sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None})
    if not found:
        raise ModelError(f"model.path = {path!r} names no end-of-sequence token")
    return tuple(found)


def device_of(name: str) -> torch.device:
    """What ``model.device`` means for this process.

    Raises:
        ModelError: it is not there.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", local_rank())  # each process of a machine has its own
    if name == "auto":
        return torch.device("cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"model.device = {name!r}, but torch sees no CUDA device; use 'cpu'")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"model.device = {name!r}: {first_line(error)}") from error
