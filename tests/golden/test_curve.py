"""Ten steps of a tiny model, written down: numbers that change need a sentence in CHANGELOG.md.

To write them down anew: ``python -m tests.golden.test_curve > tests/golden/curve.txt``.
"""

from pathlib import Path

import pytest
import torch

from forkpoint.config import parse_config
from forkpoint.policy import PolicyModule
from forkpoint.training.optimizer import Optimizer
from forkpoint.training.step import train_step
from tests.conftest import make_batch, tiny_model

CURVE = Path(__file__).with_name("curve.txt")
NAMES = (
    "loss/policy",
    "grad/norm",
    "loss/clip_fraction_kept",
    "loss/entropy_mean_kept",
    "selection/threshold_nats",
    "selection/pool_tokens",
)


def curve() -> list[list[float]]:
    """The metrics ``NAMES`` of each step, on batches of made-up rollouts."""
    torch.set_num_threads(1)
    config = parse_config(
        {
            "selection": {"keep_fraction": 0.3, "entropy": "old"},
            "loss": {"importance_cap": "none"},  # the sampler's probabilities are made up
            "optim": {"lr": 3e-3},
            "training": {"mini_batches": 2, "micro_batch_tokens": 40},
        }
    )
    policy = PolicyModule(tiny_model(), gradient="sparse", temperature=0.9)
    optimizer = Optimizer(policy.model, config.optim)
    rows = []
    for step in range(1, 11):
        batch = make_batch(seed=step, groups=4)
        result = train_step(policy, optimizer, batch, config, step=step, same_weights=False)
        assert result.fault is None
        rows.append([result.metrics[name] for name in NAMES])
    return rows


def test_ten_steps_are_the_ones_written_down() -> None:
    lines = CURVE.read_text().splitlines()
    assert lines[0].split() == ["step", *NAMES]
    written = [[float(x) for x in line.split()[1:]] for line in lines[1:]]
    assert len(written) == 10
    for step, (now, before) in enumerate(zip(curve(), written, strict=True), start=1):
        # Ten steps amplify the rounding of float32 sums, which differs between processors.
        assert now == pytest.approx(before, rel=1e-3, abs=1e-6), f"step {step}"


if __name__ == "__main__":
    print("step", *NAMES)
    for number, values in enumerate(curve(), start=1):
        print(number, *(f"{value:.6g}" for value in values))
