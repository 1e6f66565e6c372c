"""Checkpoints that are either whole or not there.

A checkpoint is a folder ``step_00010`` with the model and tokenizer as transformers reads them,
``optimizer.safetensors``, ``state.json``, and ``manifest.json`` with the size and SHA-256 of every
other file. It is written under another name, synced, and renamed last, so that whatever happens in
between leaves the previous checkpoint in place.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from forkpoint.errors import RunError
from forkpoint.policy.lora import adapts
from forkpoint.policy.precision import gathered
from forkpoint.ranks import ALONE, Ranks
from forkpoint.runs.checkpoints import (
    checkpoint_fault,
    checkpoint_folders,
    checkpoint_path,
    remove_checkpoint,
    sha256,
)
from forkpoint.training.optimizer import Optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run is. All randomness derives from it, so there is no generator to save."""

    step: int = 0
    """Finished steps."""
    next_serial: int = 0
    """The first prompt of the task's stream that was not used."""
    updates: int = 0
    """Optimizer updates made."""
    bad_steps: int = 0
    """Steps in a row that could not be trained on."""
    unevaluated: dict[str, float] | None = None
    """The last step's metrics, if its evaluation was interrupted and is still to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCheckpoint:
    """A whole checkpoint on disk. Made by ``latest_checkpoint``."""

    path: Path
    state: RunState


def save_checkpoint(
    root: Path,
    state: RunState,
    model: Any,
    tokenizer: Any,
    optimizer: Optimizer,
    keep_last: int,
    ranks: Ranks = ALONE,
) -> Path:
    """Write ``root/step_XXXXX``; of it and the earlier ones the newest ``keep_last`` stay.

    A folder of a later step is one that could not be used, or the run would have gone on from it:
    it does not count, and is replaced when the run gets there. Several processes put each tensor
    together in turn, and the first one writes.

    Raises:
        RunError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    held = model.state_dict(keep_vars=True)
    if adapts(model):  # the frozen weights are where they were
        held = {name: tensor for name, tensor in held.items() if tensor.requires_grad}
    weights = gathered(held, keep=ranks.first)
    moments = optimizer.state_tensors(keep=ranks.first)
    path = checkpoint_path(root, state.step)
    if ranks.first:
        ranks.agree(lambda: _write(path, state, model, weights, tokenizer, moments, keep_last))
    else:
        ranks.agree(lambda: None)
    return path


def _write(
    final: Path,
    state: RunState,
    model: Any,
    weights: dict[str, Tensor],
    tokenizer: Any,
    moments: dict[str, Tensor],
    keep_last: int,
) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    root, partial = final.parent, final.parent / f".{final.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save_pretrained(partial, state_dict=weights, safe_serialization=True)
        if adapts(model):
            model.config.save_pretrained(partial)  # transformers writes it beside weights only
        tokenizer.save_pretrained(partial)
        save_file(
            {name: tensor.contiguous() for name, tensor in moments.items()},
            partial / "optimizer.safetensors",
        )
        (partial / "state.json").write_text(json.dumps(asdict(state), indent=2) + "\n")
        _seal(partial)
        if final.exists():  # it could not be used
            remove_checkpoint(final)
        partial.rename(final)
        _sync(root)
    except (OSError, SafetensorError) as error:  # a failed write of tensors is the latter
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(
            f"cannot write checkpoint {final}: {error}. Earlier checkpoints are untouched; make "
            "room and go on with --resume"
        ) from error
    earlier = [path for step, path in checkpoint_folders(root).items() if step <= state.step]
    for old in earlier[:-keep_last]:
        remove_checkpoint(old)


def latest_checkpoint(root: Path) -> tuple[FoundCheckpoint | None, list[str]]:
    """The newest complete checkpoint, and a sentence about each newer one that is not."""
    skipped = []
    for folder in reversed(checkpoint_folders(root).values()):
        fault = checkpoint_fault(folder)
        if fault is None:
            state = RunState(**json.loads((folder / "state.json").read_text()))
            return FoundCheckpoint(path=folder, state=state), skipped
        skipped.append(f"checkpoint {folder.name} is not used: {fault}")
    return None, skipped


def restore_optimizer(found: FoundCheckpoint, optimizer: Optimizer) -> None:
    """Give the optimizer the moments it had."""
    from safetensors.torch import load_file

    tensors = load_file(found.path / "optimizer.safetensors")
    optimizer.load_state_tensors(tensors, found.state.updates)


def _seal(folder: Path) -> None:
    """Sync every file, then write the manifest that vouches for them."""
    files = sorted(p for p in folder.iterdir() if p.is_file())
    for path in files:
        _sync(path)
    manifest = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest, indent=2) + "\n")
    _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
