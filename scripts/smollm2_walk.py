"""Teach SmolLM2-135M the laboratory's walk: ``python scripts/smollm2_walk.py --out FOLDER``.

A short supervised run towards what the demonstration policy would say, in the model's own tokens:
what a world of 24 words does for a policy of half a million weights, for a pretrained one. Where
the true forks lie is known, so FOLDER/pattern.json says how the entropy at forks and elsewhere was
before and is after, along the same held-out demonstrations. ``forkpoint ablate smollm2_walk``
trains it from there.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from forkpoint.entropy.logits import logits_stats
from forkpoint.lab import EOS, WalkWorld, draw_problem, fork_detection
from forkpoint.lab.problems import Split
from forkpoint.lab.world import demonstrate
from forkpoint.randomness import stream
from forkpoint.sampling.prompting import Prompter

WORLD = WalkWorld()
KEPT = 0.2
FULL, LESSENED = 0.6, 0.8
"""Of the steps: until when demonstrations are skilled, and from when as weakly as the world's."""


class Demonstration(NamedTuple):
    """A prompt, an answer to it, and for each of the answer's tokens those that the demonstration
    policy could have said there, with their probabilities: more than one where it is free."""

    prompt: list[int]
    answer: list[int]
    choices: list[dict[int, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/smollm2"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--demonstrations", type=int, default=16, help="in a step")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    found: dict[str, Any] = {"before": pattern(model, tokenizer, options.seed + 1)}
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
    """Minimise ``divergence`` on demonstrations that are drawn anew each step."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.steps)
    size = options.demonstrations
    for step in range(options.steps):
        world = WalkWorld(skill=skill_at(step / options.steps))
        serials = range(step * size, (step + 1) * size)
        rows = [
            demonstration(tokenizer, options.seed, serial, "train", world) for serial in serials
        ]
        loss = divergence(model, rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step == options.steps - 1:
            print(f"step {step:4d}  {loss.item():.4f} nats from the demonstrations", flush=True)
    model.eval()


def skill_at(progress: float) -> float:
    """How often the demonstrations make sure to come nearer to the goal: always at first, for what
    comes nearer is hardly to be seen where three moves in ten do; at last as often as the world's.
    """
    last = WORLD.skill
    return last + (1 - last) * min(1.0, max(0.0, (LESSENED - progress) / (LESSENED - FULL)))


def divergence(model: Any, rows: Sequence[Demonstration]) -> Tensor:
    """Mean over the answers' tokens of sum_v p_v ln(p_v / q_v) in nats, p being the demonstration
    policy's probabilities and q the model's: cross-entropy without the noise of the draws."""
    input_ids = pad_sequence([torch.tensor(row.prompt + row.answer) for row in rows], True)
    lengths = torch.tensor([len(row.prompt + row.answer) for row in rows])
    mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
    logits_BTV = model(input_ids=input_ids, attention_mask=mask.long()).logits
    losses = []
    for row, logits_TV in zip(rows, logits_BTV, strict=True):
        said_RV = logits_TV[len(row.prompt) - 1 :][: len(row.answer)].log_softmax(-1)
        places = [i for i, choices in enumerate(row.choices) for _ in choices]
        tokens = [token for choices in row.choices for token in choices]
        p = torch.tensor([p for choices in row.choices for p in choices.values()])
        losses.append((p * (p.log() - said_RV[places, tokens])).sum())
    return torch.stack(losses).sum() / sum(len(row.answer) for row in rows)


@torch.no_grad()
def pattern(model: Any, tokenizer: Any, seed: int, demonstrations: int = 64) -> dict[str, float]:
    """Entropy in nats along held-out demonstrations, apart at true forks and elsewhere."""
    entropies: list[float] = []
    choices: list[dict[int, float]] = []
    divergences: list[float] = []
    for serial in range(demonstrations):
        row = demonstration(tokenizer, seed, serial, "held_out")
        ids = torch.tensor(row.prompt + row.answer)
        logits_RV = model(input_ids=ids[None]).logits[0, len(row.prompt) - 1 : -1]
        entropies += logits_stats(logits_RV, ids[len(row.prompt) :], 1.0)[1].tolist()
        choices += row.choices
        divergences.append(float(divergence(model, [row])) * len(row.answer))
    forks = [len(tokens) > 1 for tokens in choices]
    true = [-sum(p * math.log(p) for p in tokens.values()) for tokens in choices]
    values, fork = np.array(entropies), np.array(forks)
    detection = fork_detection(entropies, forks, KEPT)
    return {
        "tokens": len(values),
        "fork_share": float(fork.mean()),
        "mean": float(values.mean()),
        "at_forks": float(values[fork].mean()),
        "true_at_forks": float(np.array(true)[fork].mean()),
        "divergence_per_fork": sum(divergences) / int(fork.sum()),
        "elsewhere": float(values[~fork].mean()),
        "p50": float(np.quantile(values, 0.5)),
        "p80": float(np.quantile(values, 0.8)),
        "precision_of_top20": detection.precision,
        "recall_of_top20": detection.recall,
    }


def demonstration(
    tokenizer: Any, seed: int, serial: int, split: Split, world: WalkWorld = WORLD
) -> Demonstration:
    """One drawn answer, in the model's tokens, and what else could have stood at each of them."""
    problem = draw_problem(world, seed=seed, serial=serial, split=split)
    words = demonstrate(world, problem.columns, stream(seed, "lab demonstration", serial))
    answer: list[int] = []
    choices: list[dict[int, float]] = []
    place = world.begin(problem.columns)
    for word in words:
        firsts: dict[int, float] = defaultdict(float)
        for other, probability in place.distribution().items():
            firsts[_tokens(tokenizer, other)[0]] += probability
        place.advance(word)
        ids = _tokens(tokenizer, word)
        answer += ids
        choices += [dict(firsts), *({token: 1.0} for token in ids[1:])]
    prompt = list(Prompter(tokenizer)(problem).token_ids)
    return Demonstration(prompt, answer, choices)


def _tokens(tokenizer: Any, word: str) -> list[int]:
    if word == EOS:
        return [tokenizer.eos_token_id]
    return list(tokenizer(f" {word}", add_special_tokens=False)["input_ids"])


if __name__ == "__main__":
    main()
