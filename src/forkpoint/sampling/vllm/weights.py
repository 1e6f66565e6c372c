"""Where the servers of a run find new weights."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from forkpoint.config import RunConfig
from forkpoint.errors import RunError
from forkpoint.policy.load import LoadedModel
from forkpoint.policy.served import write_served
from forkpoint.sampling.vllm.launch import weights_home


def served_dtype(config: RunConfig) -> str:
    """What the servers compute in."""
    wanted = config.rollout.vllm.dtype
    return config.model.compute_dtype if wanted == "auto" else wanted


class Weights:
    """The folder in which servers find new weights; of the first process alone."""

    def __init__(self, config: RunConfig, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self.dtype = served_dtype(config)
        size = sum(p.numel() for p in loaded.model.parameters())
        head = loaded.model.get_output_embeddings().weight
        if head is loaded.model.get_input_embeddings().weight:
            size += head.numel()  # it is written by itself
        self.bytes = size * self.torch_dtype.itemsize
        """Of one copy."""
        self._home = weights_home(config.rollout.vllm, 2 * self.bytes)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def write(self, version: int, weights: Mapping[str, Tensor]) -> Path:
        """A folder with the weights of a version; earlier ones are removed.

        Raises:
            RunError: no room, or not writable.
        """
        folder = self._home.path / f"{version:08d}"
        try:
            earlier = [path for path in self._home.path.glob("*[0-9]") if path != folder]
            write_served(folder, self._loaded.model, weights, self._loaded.tokenizer)
        except (OSError, SafetensorError) as error:
            raise RunError(f"cannot write new weights to {folder}: {error}") from error
        for path in earlier:
            shutil.rmtree(path, ignore_errors=True)
        return folder

    def close(self) -> None:
        self._home.close()
