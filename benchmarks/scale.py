"""What the host does between sampling and the model, at the size of a large step.

Seconds and bytes a token of everything that grows with the number of tokens and runs no model:
building the batch, splitting it, every selection rule and scope, packing into passes, layouts.
Completions of random tokens with random entropies. Prints a table in Markdown.

    python -m benchmarks.scale                                  # 10,000 sequences x 1,000 tokens
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from forkpoint.batching import build_batch, split_microbatches, split_minibatches
from forkpoint.batching.padding import wanted_rows
from forkpoint.batching.tree import lay_trees, sizes_of
from forkpoint.config import parse_config
from forkpoint.policy.sparse import padded_passes, tree_passes
from forkpoint.selection import scope_groups, select
from forkpoint.types import (
    Completion,
    FinishReason,
    Group,
    Problem,
    Prompt,
    Rollout,
    Score,
    TokenBatch,
)

GROUP = 16
PROMPT = 100
PASS_TOKENS = 16_384
WIDTH = 8_192

RULES: dict[str, dict[str, Any]] = {
    "top": {"rule": "top"},
    "top, ties kept": {"rule": "top", "ties": "keep"},
    "top, quantile": {"rule": "top", "ties": "quantile"},
    "bottom": {"rule": "bottom"},
    "random": {"rule": "random"},
    "threshold": {"rule": "threshold", "threshold_nats": 0.672},
    "all": {"rule": "all"},
}
SCOPES = ("batch", "microbatch", "sequence")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sequences", type=int, default=10_000)
    parser.add_argument("--length", type=int, default=1_000)
    options = parser.parse_args()
    groups = sampled(options.sequences, options.length)
    batch, seconds = timed(lambda: build_batch(groups, advantage="grpo"))
    print(f"{batch.num_sequences:,} sequences, {batch.num_tokens:,} tokens\n")
    print("| what | seconds |\n|---|---|")
    line("build_batch", seconds)
    for name, run in chores(batch).items():
        line(name, timed(run)[1])
    cut = split_microbatches(batch, max_tokens=PASS_TOKENS)
    for scope in SCOPES:
        groups_T = scope_groups(batch, scope, cut)
        for name, settings in RULES.items():
            line(f"select: {name}, scope {scope}", timed(chosen(batch, groups_T, settings))[1])
    print(f"\nA batch holds {bytes_of(batch) / batch.num_tokens:.1f} bytes a token, ", end="")
    print(f"its completions {completion_bytes(groups) / batch.num_tokens:.1f}.")


def chores(batch: TokenBatch) -> dict[str, Callable[[], Any]]:
    """What is done besides selecting, with a fifth of the tokens wanted."""
    wanted_T = torch.rand(batch.num_tokens, generator=torch.Generator().manual_seed(2)) < 0.2
    wanted_T &= batch.pool_T
    return {
        "split in 16 mini-batches, each taken out": lambda: [
            batch.take(part) for part in split_minibatches(batch, 16)
        ],
        "pack_trees": lambda: sizes_of(batch, wanted_rows(batch, wanted_T)).pack(WIDTH),
        "passes of tree rows": lambda: tree_passes(batch, wanted_T, PASS_TOKENS, None, width=WIDTH),
        "passes of padded rows": lambda: padded_passes(batch, wanted_T, PASS_TOKENS, None),
        "every pass of tree rows taken out and laid": lambda: lay_all(batch, wanted_T),
    }


def lay_all(batch: TokenBatch, wanted_T: torch.Tensor) -> None:
    for sequences in tree_passes(batch, wanted_T, PASS_TOKENS, None, width=WIDTH):
        lay_trees(batch.take(sequences), wanted_T[batch.rows_of(sequences)], WIDTH)


def chosen(
    batch: TokenBatch, groups_T: torch.Tensor, settings: dict[str, Any]
) -> Callable[[], Any]:
    config = parse_config({"selection": settings}).selection
    entropies_T = batch.rollout_entropies_T
    assert entropies_T is not None
    return lambda: select(batch, entropies_T, groups_T, config, seed=0, step=1)


def sampled(sequences: int, length: int) -> list[Group]:
    """Groups of ``GROUP`` completions, every other one right."""
    draw = np.random.default_rng(0)
    groups = []
    for serial in range(sequences // GROUP):
        prompt = tuple(draw.integers(3, 32_000, PROMPT).tolist())
        rollouts = tuple(
            Rollout(completion=completion(draw, length), score=Score(reward=float(sample % 2)))
            for sample in range(GROUP)
        )
        problem = Problem(id=str(serial), prompt="")
        groups.append(
            Group(
                prompt=Prompt(problem=problem, token_ids=prompt), serial=serial, rollouts_G=rollouts
            )
        )
    return groups


def completion(draw: np.random.Generator, length: int) -> Completion:
    size = int(draw.integers(length // 2, 3 * length // 2))
    return Completion(
        token_ids=draw.integers(3, 32_000, size),
        logprobs=-draw.exponential(0.5, size),
        entropies=draw.exponential(0.3, size),
        finish_reason=FinishReason.STOP,
        text="",
    )


def completion_bytes(groups: list[Group]) -> int:
    completions = [r.completion for group in groups for r in group.rollouts_G]
    arrays = [a for c in completions for a in (c.token_ids, c.logprobs, c.entropies)]
    return sum(a.nbytes for a in arrays if a is not None)


def bytes_of(batch: TokenBatch) -> int:
    """Of its streams; completions are views of one of them."""
    streams = [getattr(batch, name) for name in batch.__slots__ if name.endswith("_T")]
    return sum(s.numel() * s.element_size() for s in streams if s is not None)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return run(), time.perf_counter() - started


def line(name: str, seconds: float) -> None:
    print(f"| {name} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
