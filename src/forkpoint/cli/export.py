"""``forkpoint export``."""

from pathlib import Path
from typing import Literal

from forkpoint.cli.terminal import SafeConsole


def export(
    checkpoint: Path, *, out: Path, dtype: Literal["float32", "bfloat16", "float16"] = "float32"
) -> int:
    """Write a checkpoint as a model of its own: LoRA adapters merged, in one folder.

    Parameters
    ----------
    checkpoint
        A folder such as runs/mine/checkpoints/step_00040.
    out
        The new folder.
    dtype
        Of the weights that are written.
    """
    import torch

    from forkpoint.policy.export import export_model

    export_model(str(checkpoint), out, dtype=getattr(torch, dtype))
    SafeConsole().say(str(out))
    return 0
