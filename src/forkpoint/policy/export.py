"""A checkpoint as a model of its own, that needs neither peft nor its base nor this package."""

from pathlib import Path

import torch

from forkpoint.config.stages import ModelConfig
from forkpoint.errors import ModelError
from forkpoint.policy.load import load_model
from forkpoint.policy.served import served_weights, write_served


def export_model(checkpoint: str, out: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write the model of a checkpoint as transformers reads it, with adapters merged.

    Args:
        checkpoint: a folder, such as a checkpoint of a run.
        out: the new folder.
        dtype: of the written weights; those of a checkpoint are float32.

    Raises:
        ModelError: the checkpoint cannot be loaded, or ``out`` is not new or cannot be written.
        ConfigError: it holds adapters, and peft is not installed.
    """
    from safetensors import SafetensorError

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} is there already: name a new folder")
    loaded = load_model(ModelConfig(path=checkpoint, device="cpu"))
    weights = served_weights(loaded.model, dtype)
    try:
        write_served(out, loaded.model, weights, loaded.tokenizer, untie=False)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot write {out}: {error}") from error
