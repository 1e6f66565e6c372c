"""One optimizer step of TRL's GRPOTrainer with top_entropy_quantile = 0.2 on a recorded batch.

The completions come through ``rollout_func``, so nothing is sampled; no KL term, no reference
model; the loss is DAPO's. Time is from the beginning of a step to after its optimizer update.
"""

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.memory import reset_peak, resident_gb, step_memory_gb
from benchmarks.workloads import SampledGroup, load, workload

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
warnings.filterwarnings("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--workload", default="half_zero")
    parser.add_argument(
        "--without-flat", action="store_true", help="Leave out groups with zero variance."
    )
    parser.add_argument("--forking", action="store_true", help="ForkingGRPOTrainer instead.")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    groups = workload(options.workload)
    if options.without_flat:
        groups = [group for group in groups if group.teaches]
    print(json.dumps(measure(options, groups)))


def measure(options: argparse.Namespace, groups: list[SampledGroup]) -> dict[str, Any]:
    """Seconds of each optimizer step on the CPU and the first one's memory."""
    from transformers import AutoTokenizer

    model = load(options.model)
    before, parameters = 0.0, sum(p.numel() for p in model.parameters())

    def begin() -> None:
        nonlocal before
        before = resident_gb()
        reset_peak()

    seconds, memory_gb = train(
        model,
        AutoTokenizer.from_pretrained("models/smollm2"),
        groups,
        batch_size=options.batch_size,
        repeats=options.repeats,
        begin=begin,
        memory_gb=lambda: step_memory_gb(before, parameters),
        forking=options.forking,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    return {
        "seconds": seconds,
        "memory_gb": memory_gb[0],
        "resident_gb": resident_gb("VmHWM"),
    }


def train(
    model: Any,
    tokenizer: Any,
    groups: list[SampledGroup],
    *,
    batch_size: int,
    repeats: int,
    begin: Callable[[], None],
    memory_gb: Callable[[], float],
    forking: bool = False,
    **settings: Any,
) -> tuple[list[float], list[float]]:
    """Seconds of each optimizer step on ``groups``, and ``memory_gb()`` after each.

    Args:
        batch_size: sequences in one of TRL's passes.
        begin: called before the first step, once the trainer stands.
        forking: with this package's trainer in the place of TRL's.
        settings: what else ``GRPOConfig`` is told.
    """
    from datasets import Dataset
    from transformers import TrainerCallback

    trainer_class, config_class, selection = _classes(forking)

    class Clock(TrainerCallback):
        """Notes when steps begin and end."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.memory_gb: list[float] = []
            self.began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self.began)
            self.memory_gb.append(memory_gb())

    size = len(groups[0].samples)
    clock, replay = Clock(), Replay(groups)
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(
            folder,
            report_to="none",
            per_device_train_batch_size=batch_size,
            num_generations=size,
            gradient_accumulation_steps=len(groups) * size // batch_size,
            max_completion_length=max(len(s.token_ids) for g in groups for s in g.samples),
            max_steps=repeats,
            **selection,
            save_strategy="no",
            disable_tqdm=True,
            learning_rate=1e-6,
            shuffle_dataset=False,
            loss_type="dapo",
            epsilon_high=0.28,
            beta=0.0,
            **settings,
        )
        rows = [{"prompt": [{"role": "user", "content": group.prompt}]} for group in groups]
        trainer = trainer_class(
            model,
            replay.reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            rollout_func=replay.rollout,
            callbacks=[clock],
        )
        begin()
        trainer.train()
    return clock.seconds, clock.memory_gb


def _classes(forking: bool) -> tuple[Any, Any, dict[str, Any]]:
    """A trainer, its configuration, and how that says a fifth of the tokens."""
    if forking:
        from forkpoint.integrations.trl import ForkingGRPOConfig, ForkingGRPOTrainer

        chosen = {"keep_fraction": 0.2, "keep_completions": False}
        return ForkingGRPOTrainer, ForkingGRPOConfig, chosen
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    return GRPOTrainer, GRPOConfig, {"top_entropy_quantile": 0.2}


class Replay:
    """Gives TRL what was recorded, as its ``rollout_func`` and its reward function."""

    def __init__(self, groups: list[SampledGroup]) -> None:
        self._groups = groups
        self._by_text = {group.prompt: index for index, group in enumerate(groups)}
        self._asked: dict[str, dict[int, int]] = {"rollout": {}, "reward": {}}

    def rollout(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        chosen = [self._next_of(prompt, "rollout") for prompt in prompts]
        return {
            "prompt_ids": [self._groups[g].prompt_ids for g, _ in chosen],
            "completion_ids": [self._groups[g].samples[s].token_ids for g, s in chosen],
            "logprobs": None,
        }

    def reward(self, prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        chosen = [self._next_of(prompt, "reward") for prompt in prompts]
        return [self._groups[g].samples[s].reward for g, s in chosen]

    def _next_of(self, prompt: Any, purpose: str) -> tuple[int, int]:
        """The group of a prompt and which of its samples comes next."""
        group = self._by_text[prompt if isinstance(prompt, str) else prompt[-1]["content"]]
        turn = self._asked[purpose].get(group, 0)
        self._asked[purpose][group] = turn + 1
        return group, turn % len(self._groups[group].samples)


if __name__ == "__main__":
    main()
