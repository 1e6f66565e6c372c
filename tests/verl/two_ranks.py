"""Half of a step on each of two processes, updated by verl's worker and engine."""

from pathlib import Path
from typing import Any

import torch


def updates(rank: int, config: Any, folder: str) -> None:
    """Leaves the gradients of the step's updates in a file, by what they are divided by."""
    from verl.utils.tensordict_utils import assign_non_tensor

    from tests.verl.runs import Engine, Step, Worker, list_of_dict_to_tensordict

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    found = {}
    for denominator, fields in torch.load(Path(folder) / "fields").items():
        step = Step()
        rows = step.rows()
        for name, values in fields.items():
            for row, part in zip(rows, values.split(step.lengths), strict=True):
                row[name] = part
        data = list_of_dict_to_tensordict(rows[6 * rank : 6 * rank + 6])
        assign_non_tensor(data, mini_batch_size=6, global_batch_size=6, epochs=1)
        engine = Engine(step.new)
        Worker(config, engine).train_mini_batch(data)
        found[denominator] = engine.gradients
    torch.save(found, Path(folder) / f"gradients{rank}")
    torch.distributed.destroy_process_group()
