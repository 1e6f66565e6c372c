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
from typing import Any

from benchmarks.memory import reset_peak, resident_gb, step_memory_gb
from benchmarks.workloads import SampledGroup, load, workload

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
warnings.filterwarnings("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--workload", default="half_zero")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    print(json.dumps(measure(options, workload(options.workload))))


def measure(options: argparse.Namespace, groups: list[SampledGroup]) -> dict[str, Any]:
    """Seconds of each optimizer step and the first one's memory."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model = load(options.model)
    size = len(groups[0].samples)
    asked: dict[str, dict[int, int]] = {"rollout": {}, "reward": {}}
    by_text = {group.prompt: index for index, group in enumerate(groups)}

    def next_of(prompt: Any, purpose: str) -> tuple[int, int]:
        """The group of a prompt and which of its samples comes next."""
        group = by_text[prompt if isinstance(prompt, str) else prompt[-1]["content"]]
        turn = asked[purpose].get(group, 0)
        asked[purpose][group] = turn + 1
        return group, turn % size

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        chosen = [next_of(prompt, "rollout") for prompt in prompts]
        return {
            "prompt_ids": [groups[g].prompt_ids for g, _ in chosen],
            "completion_ids": [groups[g].samples[s].token_ids for g, s in chosen],
            "logprobs": None,
        }

    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        return [groups[g].samples[s].reward for g, s in (next_of(p, "reward") for p in prompts)]

    class Clock(TrainerCallback):
        """Notes when steps begin and end."""

        seconds: list[float]
        memory = 0.0

        def __init__(self) -> None:
            self.seconds, self.began = [], 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.began)
            self.memory = self.memory or step_memory_gb(before, parameters)

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            per_device_train_batch_size=options.batch_size,
            num_generations=size,
            gradient_accumulation_steps=len(groups) * size // options.batch_size,
            max_completion_length=max(len(s.token_ids) for g in groups for s in g.samples),
            max_steps=options.repeats,
            top_entropy_quantile=0.2,
            save_strategy="no",
            gradient_checkpointing=False,
            disable_tqdm=True,
            learning_rate=1e-6,
            shuffle_dataset=False,
            loss_type="dapo",
            epsilon_high=0.28,
            beta=0.0,
        )
        rows = [{"prompt": [{"role": "user", "content": group.prompt}]} for group in groups]
        tokenizer = AutoTokenizer.from_pretrained("models/smollm2")
        trainer = GRPOTrainer(
            model,
            reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            rollout_func=rollout,
            callbacks=[clock],
        )
        parameters = sum(p.numel() for p in model.parameters())
        before = resident_gb()
        reset_peak()
        trainer.train()
    return {
        "seconds": clock.seconds,
        "memory_gb": clock.memory,
        "resident_gb": resident_gb("VmHWM"),
    }


if __name__ == "__main__":
    main()
