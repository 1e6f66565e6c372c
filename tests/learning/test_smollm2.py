"""One step on a real language model, where ``make smollm2`` has been run (CI does)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from forkpoint.batching import build_batch
from forkpoint.config import load_config
from forkpoint.policy import PolicyModule
from forkpoint.runs import read_metrics
from forkpoint.runs.completions import read_completions
from forkpoint.sampling import build_sampling, collect_groups
from forkpoint.sampling.base import SamplingSettings
from forkpoint.training.loop import train

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / "models" / "smollm2" / "config.json").exists(), reason="run make smollm2 first"
    ),
]

SETTINGS = (
    f'model.path="{ROOT / "models" / "smollm2"}"',
    'rewards=[{type="format", pattern=".*[0-9].*"}]',
    "rollout.prompts_per_step=2",
    "rollout.group_size=4",
    "rollout.max_new_tokens=12",
    "rollout.dynamic_sampling=false",
    "evaluation.every=0",
    "training.steps=1",
    "training.mini_batches=1",
)


def test_one_step_changes_the_weights_and_leaves_a_run_behind(tmp_path: Path) -> None:
    config = load_config(
        ROOT / "src" / "forkpoint" / "recipes" / "smollm2_chain_sum.toml", SETTINGS
    )
    outcome = train(config, tmp_path / "run")
    assert outcome.state.updates == 1
    line = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert line["mismatch/kl"] < 1e-6
    assert 0.2 <= line["selection/kept_fraction"] < 0.25
    rows = list(read_completions([tmp_path / "run/completions/train/step_00001.parquet"]))
    assert len(rows) == 8
    assert all("<|im_start|>assistant" in row.prompt for row in rows)


def test_entropies_captured_while_sampling_are_the_teacher_forced_ones() -> None:
    config = load_config(
        ROOT / "src" / "forkpoint" / "recipes" / "smollm2_chain_sum.toml", SETTINGS
    )
    parts = build_sampling(config)
    try:
        rollouts = collect_groups(
            parts,
            config.rollout,
            SamplingSettings(max_new_tokens=12, temperature=1.0, seed=0, step=1),
            first_serial=0,
        )
    finally:
        parts.close()
    batch = build_batch(rollouts.groups, advantage="grpo")
    policy = PolicyModule(parts.loaded.model, gradient="sparse", temperature=1.0)
    stats = policy.annotate(batch, max_tokens=512)
    logprobs_T, entropies_T = stats.logprobs_R, stats.entropies_R
    assert batch.rollout_entropies_T is not None
    assert torch.allclose(entropies_T, batch.rollout_entropies_T, atol=2e-3)
    assert torch.allclose(logprobs_T, batch.rollout_logprobs_T, atol=2e-3)
    assert float(np.std(entropies_T.numpy())) > 0.1  # a real spread, so equality says something
