"""Teach SmolLM2-135M the laboratory's walk: ``python scripts/smollm2_walk.py --out FOLDER``.

A short supervised run on demonstrations, in the model's own tokens: what a world of 24 words does
for a policy of half a million weights, for a pretrained one. Where the true forks lie is known, so
FOLDER/pattern.json says how the entropy at forks and elsewhere was before and is after, along the
same held-out demonstrations. ``forkpoint ablate smollm2_walk`` trains it from there.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from forkpoint.entropy.logits import logits_stats
from forkpoint.lab import EOS, WalkWorld, draw_problem, fork_detection, truth_of
from forkpoint.lab.problems import Split
from forkpoint.lab.world import demonstrate
from forkpoint.randomness import stream
from forkpoint.sampling.prompting import Prompter

WORLD = WalkWorld()
IGNORED = -100
KEPT = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/smollm2"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--demonstrations", type=int, default=16, help="in a step")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    found = {"before": pattern(model, tokenizer, options.seed + 1)}
    print(f"before: {found['before']}", flush=True)
    started = time.perf_counter()
    teach(model, tokenizer, options)
    found["after"] = pattern(model, tokenizer, options.seed + 1)
    found["made_by"] = {name: str(value) for name, value in vars(options).items()}
    found["minutes"] = (time.perf_counter() - started) / 60
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    (options.out / "pattern.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"after: {found['after']}\n{options.out} is ready: forkpoint ablate smollm2_walk")


def teach(model: Any, tokenizer: Any, options: argparse.Namespace) -> None:
    """Cross-entropy on the answers of demonstrations, drawn anew each step."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.steps)
    size = options.demonstrations
    for step in range(options.steps):
        rows = [
            demonstration(tokenizer, options.seed, serial, "train")
            for serial in range(step * size, (step + 1) * size)
        ]
        loss = model(**batch(rows)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step == options.steps - 1:
            print(f"step {step:4d}  loss {loss.item():.4f} nats", flush=True)
    model.eval()


@torch.no_grad()
def pattern(model: Any, tokenizer: Any, seed: int, demonstrations: int = 64) -> dict[str, float]:
    """Entropy in nats along held-out demonstrations, apart at true forks and elsewhere."""
    entropies: list[float] = []
    forks: list[bool] = []
    for serial in range(demonstrations):
        prompt, answer, free = demonstration(tokenizer, seed, serial, "held_out")
        ids = torch.tensor(prompt + answer)
        logits_RV = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1]
        entropies += logits_stats(logits_RV, ids[len(prompt) :], 1.0)[1].tolist()
        forks += free
    values, fork = np.array(entropies), np.array(forks)
    detection = fork_detection(entropies, forks, KEPT)
    return {
        "tokens": len(values),
        "fork_share": float(fork.mean()),
        "mean": float(values.mean()),
        "at_forks": float(values[fork].mean()),
        "elsewhere": float(values[~fork].mean()),
        "p50": float(np.quantile(values, 0.5)),
        "p80": float(np.quantile(values, 0.8)),
        "precision_of_top20": detection.precision,
        "recall_of_top20": detection.recall,
    }


def demonstration(
    tokenizer: Any, seed: int, serial: int, split: Split
) -> tuple[list[int], list[int], list[bool]]:
    """Tokens of a prompt and of a demonstrated answer, and which of the latter are the first of a
    freely chosen word."""
    problem = draw_problem(WORLD, seed=seed, serial=serial, split=split)
    words = demonstrate(WORLD, problem.columns, stream(seed, "lab demonstration", serial))
    forks = truth_of(WORLD, problem.columns, words).forks
    prompt = list(Prompter(tokenizer)(problem).token_ids)
    answer: list[int] = []
    free: list[bool] = []
    for word, fork in zip(words, forks, strict=True):
        ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        ids = [tokenizer.eos_token_id] if word == EOS else ids
        answer += ids
        free += [fork, *[False] * (len(ids) - 1)]
    return prompt, answer, free


def batch(rows: Sequence[tuple[list[int], list[int], list[bool]]]) -> dict[str, Tensor]:
    """Right-padded ids and labels; the prompt and the padding teach nothing."""
    ids = [torch.tensor(prompt + answer) for prompt, answer, _ in rows]
    labels = [torch.tensor([IGNORED] * len(prompt) + answer) for prompt, answer, _ in rows]
    mask = [torch.ones_like(row) for row in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence(mask, batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


if __name__ == "__main__":
    main()
