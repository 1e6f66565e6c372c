"""Run directories with checkpoints, made without training: the laboratory's policy, disturbed."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from forkpoint.config import RunConfig, load_config
from forkpoint.config.stages import ModelConfig
from forkpoint.policy.load import load_model
from forkpoint.tasks import Task
from forkpoint.types import Completion, Problem, Score

SMALL = ("rollout.max_new_tokens=60", "training.micro_batch_tokens=512", "model.device=cpu")


def disturbed_policy(folder: Path, *, scale: float, seed: int = 0) -> Path:
    """The shipped policy plus noise of ``scale`` times its weights' mean size."""
    loaded = load_model(ModelConfig())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * scale * parameter.abs().mean())
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def run_with_checkpoints(root: Path, scales: dict[int, float]) -> RunConfig:
    """A run's folder as training leaves it: config.json and checkpoints/step_*.

    Args:
        scales: step -> how far its policy is from the base.
    """
    config = load_config(None, SMALL)
    root.mkdir()
    (root / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    for step, scale in scales.items():
        disturbed_policy(root / "checkpoints" / f"step_{step:05d}", scale=scale)
    return config


class LocalScorer:
    """The task's verifier, called in this process: starting workers takes seconds."""

    def __init__(self, config: RunConfig, task: Task) -> None:
        assert task.verifier is not None
        self._verifier = task.verifier

    def score(
        self,
        pairs: Sequence[tuple[Problem, Completion]],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Score]:
        """See ``Scorer.score``."""
        rewards = [self._verifier(problem.columns, answer.text) for problem, answer in pairs]
        return [Score(reward=reward, verdict=reward, parts={"task": reward}) for reward in rewards]

    def close(self) -> None:
        """Nothing is held."""
