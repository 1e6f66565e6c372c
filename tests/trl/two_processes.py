"""One step of ``ForkingGRPOTrainer`` as one of several processes: started by test_trainer.py."""

import sys
from pathlib import Path

import torch

from forkpoint.integrations.trl import ForkingGRPOConfig, ForkingGRPOTrainer
from tests.trl_runs import run

folder = Path(sys.argv[1])
trainer, _, gradients = run(
    folder,
    ForkingGRPOTrainer,
    ForkingGRPOConfig,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
)
if trainer.is_world_process_zero():
    line = trainer.state.log_history[0]
    found = {
        "gradient": gradients[0],
        "kept": line["selection/kept_fraction"],
        "pool": line["selection/pool_tokens"],
    }
    torch.save(found, folder / "found.pt")
