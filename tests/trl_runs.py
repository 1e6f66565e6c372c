"""Small runs of TRL's trainer and of ours on the same made-up rollouts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from forkpoint.lab import BASE_POLICIES, WalkWorld, draw_problem

PROMPTS, SIZE = 4, 4


class Replay:
    """Answers each prompt with the same completions whenever it is asked, and scores them."""

    def __init__(self, tokenizer: Any) -> None:
        world = WalkWorld()
        self.prompts = [
            draw_problem(world, seed=1, serial=serial, split="train").prompt
            for serial in range(PROMPTS)
        ]
        generator = torch.Generator().manual_seed(5)
        words = len(tokenizer)
        self._asked: dict[str, int] = {}
        self._completions: dict[tuple[str, int], list[int]] = {}
        for prompt in self.prompts:
            for sample in range(SIZE):
                length = int(torch.randint(3, 14, (), generator=generator))
                ids = torch.randint(2, words, (length,), generator=generator).tolist()
                self._completions[str(prompt), sample] = [*ids, tokenizer.eos_token_id]
        self._tokenizer = tokenizer

    def rollout(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """TRL's ``rollout_func``: samples are numbered in the order in which they are asked for,
        those of another process before them."""
        size = len(prompts)
        first = trainer.accelerator.process_index * size
        answers = [self._completions[p, (first + i) % SIZE] for i, p in enumerate(prompts)]
        return {
            "prompt_ids": [self._tokenizer(p)["input_ids"] for p in prompts],
            "completion_ids": answers,
            "logprobs": None,
        }

    def reward(self, completions: list[Any], **_: Any) -> list[float]:
        """Some 0, some 1; every answer to the first prompt the same: a flat group."""
        return [float(len(str(text)) % 3 == 0) for text in completions]

    def flat_reward(self, prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        """The same, but for one prompt nothing is better than anything else."""
        plain = self.reward(completions)
        return [0.0 if p == self.prompts[0] else r for p, r in zip(prompts, plain, strict=True)]


def run(
    folder: Path, trainer_class: Any, config_class: Any, *, steps: int = 1, **settings: Any
) -> tuple[Any, dict[str, torch.Tensor], list[torch.Tensor]]:
    """Train the walk's base policy: the trainer, its last weights, each step's gradient."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    torch.manual_seed(0)
    path = str(BASE_POLICIES["lab:walk"])
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    replay, gradients = Replay(tokenizer), []

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            flat = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            gradients.append(torch.cat(flat).clone())

    given: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": PROMPTS * SIZE // 4,
        "num_generations": SIZE,
        "max_completion_length": 16,
        "max_steps": steps,
        "learning_rate": 1e-3,
        "max_grad_norm": 1e9,
        "loss_type": "dapo",
        "epsilon_high": 0.28,
        "beta": 0.0,
        "shuffle_dataset": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "seed": 3,
    }
    trainer = trainer_class(
        model,
        settings.pop("reward", None) or replay.flat_reward,
        args=config_class(str(folder), **(given | settings)),
        train_dataset=Dataset.from_list([{"prompt": p} for p in replay.prompts]),
        processing_class=tokenizer,
        rollout_func=replay.rollout,
        callbacks=[Gradients()],
    )
    trainer.train()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return trainer, weights, gradients


Trained = Callable[..., tuple[Any, dict[str, torch.Tensor], list[torch.Tensor]]]
