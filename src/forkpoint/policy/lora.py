"""Low-rank adapters: W x + (alpha / r) B A x, with A and B trained and W frozen (Hu et al. 2021).

By peft, through transformers' own adapters: the model keeps its class, so that everything that is
known of it (body, head, masks, trials) holds. B starts at zero, so the policy starts as the model.
"""

from pathlib import Path
from typing import Any

import torch

from forkpoint.config.stages import LoraConfig
from forkpoint.errors import ConfigError, ModelError
from forkpoint.runs.atomic import read_object

ADAPTER_CONFIG, ADAPTERS = "adapter_config.json", "adapter_model.safetensors"


def add_adapters(model: Any, settings: LoraConfig | None, adapters: Path | None) -> None:
    """Freeze the model and put adapters into its linear layers, in float32.

    Args:
        settings: of adapters that are trained; None: those that are there are used as they are.
        adapters: a checkpoint with adapters; None starts new ones.

    Raises:
        ConfigError: peft is not installed.
        ModelError: no layer has such a name, or the checkpoint's adapters are others.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError("model.lora needs peft: pip install 'forkpoint[lora]'") from None
    try:
        if adapters is not None:
            model.load_adapter(str(adapters), is_trainable=settings is not None)
        elif settings is not None:
            targets = settings.targets
            wanted = peft.LoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
                target_modules=targets if isinstance(targets, str) else list(targets),
                task_type="CAUSAL_LM",
            )
            with torch.random.fork_rng():
                torch.manual_seed(settings.seed)  # A is drawn at random
                model.add_adapter(wanted)
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelError(f"model.lora: {str(error).splitlines()[0]}") from error
    for name, parameter in model.named_parameters():
        if "lora_embedding" in name:
            raise ModelError(
                "model.lora.targets: an embedding cannot be adapted, linear layers can"
            )
        adapter = "lora_" in name
        parameter.requires_grad_(adapter and settings is not None)
        if adapter:
            parameter.data = parameter.data.float()


def found_adapters(folder: Path) -> Path | None:
    """The folder, if it holds adapters.

    Raises:
        ModelError: adapters that are not safetensors, which peft would unpickle.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    if not (folder / ADAPTERS).is_file():
        raise ModelError(f"{folder} has adapters, but no {ADAPTERS}: only safetensors are read")
    return folder


def base_of(adapters: Path) -> str:
    """The model that adapters were trained on.

    Raises:
        ModelError: the folder does not say.
    """
    base = read_object(adapters / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{adapters / ADAPTER_CONFIG} names no base model")
    return str(base)


def adapts(model: Any) -> bool:
    """Whether a model has adapters."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))
