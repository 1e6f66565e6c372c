"""Which policies are compared, and whether they can be: same shape of model, same vocabulary."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkpoint.errors import ModelError, RunError
from forkpoint.policy.load import model_source
from forkpoint.runs import RunDirectory
from forkpoint.runs.checkpoints import checkpoint_folders

KEEP_MORE = "--set checkpoint.every=4 --set checkpoint.keep_last=99"

WEIGHTS = "*model*.safetensors"
"""Whole weights, or adapters."""

SHAPE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
"""What two checkpoints of one model have in common."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One of the policies that ``dynamics`` compares."""

    name: str
    step: int | None
    """Of training; 0 for the base, None if the name does not say."""
    path: str
    """``lab``, a folder or a hub id."""


def checkpoints_of_run(root: Path, base: str) -> list[Checkpoint]:
    """The model a run began with, then the checkpoints it kept, in the order of training.

    A folder without weights is left out: what a kill left, or what a user made room by.

    Raises:
        RunError: it kept none.
    """
    folders = checkpoint_folders(RunDirectory(root).checkpoints_dir).values()
    found = [_checkpoint(str(folder)) for folder in folders if any(folder.glob(WEIGHTS))]
    if not found:
        raise RunError(
            f"{root} has no checkpoints: train with {KEEP_MORE} to keep one every 4 steps"
        )
    return [Checkpoint(name="base", step=0, path=base), *found]


def named_checkpoints(base: str, paths: Sequence[str]) -> list[Checkpoint]:
    """The base, then checkpoints in the order given; steps are read off ``step_00010``,
    ``global_step_10`` or ``checkpoint-10``."""
    return [Checkpoint(name="base", step=0, path=base), *map(_checkpoint, paths)]


def check_comparable(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse what cannot be compared, before anything is sampled or scored.

    Raises:
        ModelError: naming the checkpoint and how it differs from the first.
    """
    base, *others = checkpoints
    shape, vocabulary = _shape(base), _vocabulary(base)
    for other in others:
        for key, value in _shape(other).items():
            if value != shape[key]:
                raise ModelError(
                    f"{other.path} is not a checkpoint of {base.path}: {key} is {value}, "
                    f"not {shape[key]}"
                )
        words = _vocabulary(other)
        if None not in (words, vocabulary) and words != vocabulary:
            raise ModelError(
                f"the tokenizer of {other.path} is not the one of {base.path}: the same ids would "
                "be other tokens"
            )


def _checkpoint(path: str) -> Checkpoint:
    name = Path(path).name
    number = re.search(r"(?:step[_-]?|checkpoint[_-])(\d+)$", name)
    return Checkpoint(name=name, step=int(number[1]) if number else None, path=path)


def _shape(checkpoint: Checkpoint) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model_source(checkpoint.path), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().split("\n")[0]
        raise ModelError(f"{checkpoint.path} cannot be loaded: {first}") from error
    text = config.get_text_config()
    return {key: getattr(text, key, None) for key in SHAPE}


def _vocabulary(checkpoint: Checkpoint) -> dict[str, int] | None:
    """Token -> id; None for a checkpoint that was saved without its tokenizer."""
    from transformers import AutoTokenizer

    source = model_source(checkpoint.path)
    if Path(source).is_dir() and not any(Path(source).glob("tokenizer*")):
        return None  # one would be made up
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False).get_vocab()
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        first = str(error).strip().split("\n")[0]
        raise ModelError(f"the tokenizer of {checkpoint.path} cannot be loaded: {first}") from error
