"""``forkpoint export``."""

from pathlib import Path

from forkpoint.cli.terminal import SafeConsole


def export(checkpoint: Path, *, out: Path) -> int:
    """Merge a checkpoint's LoRA adapters into their base: a model as transformers reads it.

    Parameters
    ----------
    checkpoint
        A folder with adapters, such as runs/mine/checkpoints/step_00040.
    out
        The new folder.
    """
    from forkpoint.policy.lora import merge

    merge(checkpoint, out)
    SafeConsole().say(str(out))
    return 0
