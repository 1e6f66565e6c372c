"""Checkpoints that are either whole or not there.

A checkpoint is a folder ``step_00010`` with the model and tokenizer as transformers reads them,
``optimizer.safetensors``, ``state.json``, and ``manifest.json`` with the size and SHA-256 of every
other file. It is written under another name, synced, and renamed last, so that whatever happens in
between leaves the previous checkpoint in place.

Several processes write a part each. Every tensor is put together by all and kept by one, which
writes ``model-00001-of-00003.safetensors`` and ``optimizer-00001-of-00003.safetensors``: files of
whole tensors under the names that transformers gives to those of a large model. So what any number
of processes has written, any number of processes and every other program read.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from forkpoint.errors import RunError
from forkpoint.policy.lora import adapts
from forkpoint.policy.precision import gathered, wrapped_layers
from forkpoint.ranks import ALONE, Ranks
from forkpoint.runs.checkpoints import (
    checkpoint_fault,
    checkpoint_folders,
    checkpoint_path,
    put_in_place,
    remove_checkpoint,
    sha256,
)
from forkpoint.training.optimizer import Optimizer

PART = "part_{:05d}"
"""Where a process writes first."""
PARTS = "part_*"

FAMILIES = ("model", "optimizer")
"""What begins the names of the files of which each process may write one."""

Sums = dict[str, dict[str, int | str]]
"""Of a manifest: name -> bytes and sha256."""


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
    rows: str | None = None
    """``Task.digest``."""
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
    it does not count, and is replaced when the run gets there. All processes must see ``root``.

    Raises:
        RunError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    final = checkpoint_path(root, state.step)
    partial = root / f".{final.name}.partial"
    held = model.state_dict(keep_vars=True)
    if adapts(model):  # the frozen weights are where they were
        held = {name: tensor for name, tensor in held.items() if tensor.requires_grad}
    own = own_names(model, held, ranks)
    weights = gathered(held, keep=own.__contains__)
    moments = optimizer.state_tensors(keep=own.__contains__)

    @_told(final)
    def begin() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    @_told(final)
    def write() -> Sums:
        return _write_part(partial / PART.format(ranks.rank), model, weights, moments)

    @_told(final)
    def finish() -> None:
        sums = _put_together(partial, {k: v for part in parts for k, v in part.items()})
        if adapts(model):
            model.config.save_pretrained(partial)  # transformers writes it beside weights only
        tokenizer.save_pretrained(partial)
        (partial / "state.json").write_text(json.dumps(asdict(state), indent=2) + "\n")
        _seal(partial, sums)
        put_in_place(partial, final)
        _sync(root)

    try:
        ranks.by_first(begin)
        parts = ranks.agree(write)
        ranks.by_first(finish)
    except RunError:
        if ranks.first:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    ranks.by_first(lambda: _remove_earlier(root, state.step, keep_last))
    return final


def own_names(model: Any, held: Mapping[str, Tensor], ranks: Ranks) -> set[str]:
    """Which of the tensors ``held`` this process writes: about as much as any other.

    A decoder layer's go to one process, for transformers may cut or join them when it writes them.
    """
    layers = wrapped_layers(model)
    groups: dict[str, list[str]] = {}
    for name in held:
        layer = next((one for one in layers if name.startswith(f"{one}.")), "")
        groups.setdefault("" if adapts(model) else layer, []).append(name)  # adapters: one file
    found = list(groups.values())
    share = ranks.share([float(sum(held[name].numel() for name in group)) for group in found])
    return {name for task in share if task is not None for name in found[task]}


def _write_part(
    part: Path, model: Any, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]
) -> Sums:
    """Write what this process keeps, in a folder of its own.

    Returns:
        The sums of its tensors' files, under their names beside ``part``.
    """
    from safetensors.torch import save_file

    part.mkdir()
    if weights:
        # By itself transformers writes in the first process only, and elsewhere says nothing.
        model.should_save_on_this_rank = lambda is_main_process: is_main_process
        try:
            model.save_pretrained(part, state_dict=dict(weights))
        finally:
            del model.should_save_on_this_rank
        contiguous = {name: tensor.contiguous() for name, tensor in moments.items()}
        save_file(contiguous, part / "optimizer.safetensors")
    files = sorted(part.glob("*.safetensors"))
    return {f"{part.name}/{path.name}": _synced(path) for path in files}


def _put_together(folder: Path, written: Sums) -> Sums:
    """Move what the processes wrote into ``folder`` itself, under the names it goes by."""
    from safetensors import safe_open

    sums: Sums = {}
    weight_map: dict[str, str] = {}
    for family in FAMILIES:
        paths = [folder / name for name in written if Path(name).name.startswith(family)]
        for number, path in enumerate(paths, 1):
            place = "" if len(paths) == 1 else f"-{number:05d}-of-{len(paths):05d}"
            name = f"{family}{place}.safetensors"
            sums[name] = written[f"{path.parent.name}/{path.name}"]
            path.rename(folder / name)
            if family == "model":
                with safe_open(folder / name, "pt") as file:
                    weight_map |= dict.fromkeys(file.offset_keys(), name)
    for path in (folder / PART.format(0)).iterdir():  # configs, adapters
        path.rename(folder / path.name)
    names = set(weight_map.values())
    if len(names) > 1:  # as transformers lists the files of a model
        size = sum(int(sums[name]["bytes"]) for name in names)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        text = json.dumps(index, indent=2) + "\n"
        (folder / "model.safetensors.index.json").write_text(text)
    for part in folder.glob(PARTS):
        for path in part.iterdir():  # the same configs
            path.unlink()
        part.rmdir()
    return sums


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """
    Raises:
        RunError: instead of what a disk, or safetensors, says.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:  # a failed write of tensors is the latter
        raise RunError(
            f"cannot write checkpoint {folder}: {error}. Earlier checkpoints are untouched; make "
            "room and go on with --resume"
        ) from error


def _remove_earlier(root: Path, step: int, keep_last: int) -> None:
    earlier = [path for at, path in checkpoint_folders(root).items() if at <= step]
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
    from safetensors import safe_open

    for path in sorted(found.path.glob("optimizer*.safetensors")):
        with safe_open(path, "pt") as file:
            names = file.offset_keys()
            optimizer.load_state_tensors((name, file.get_tensor(name)) for name in names)
    optimizer.updates = found.state.updates


def _seal(folder: Path, sums: Sums) -> None:
    """Sync every file, then write the manifest that vouches for them.

    Args:
        sums: of the files that are synced already.
    """
    names = sorted(path.name for path in folder.iterdir())
    manifest = {name: sums.get(name) or _synced(folder / name) for name in names}
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest, indent=2) + "\n")
    _sync(path)
    _sync(folder)


def _synced(path: Path) -> dict[str, int | str]:
    """A file's entry of the manifest, when its bytes are on the disk."""
    _sync(path)
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
