"""Time and memory of a step against one size at a time, dense, sparse and local; a line of JSON.

A random Qwen3 of 4 layers, 256 wide; completions of random tokens. Each point is one gradient of
the whole batch, the second of two.
"""

import argparse
import ctypes
import json
import time
from typing import Any

import torch

from benchmarks.memory import reset_peak, resident_gb
from benchmarks.workloads import qwen3
from forkpoint.batching import build_batch
from forkpoint.config import parse_config
from forkpoint.losses import batch_loss, with_coefficients
from forkpoint.losses.batch_loss import needed_rows
from forkpoint.policy import PolicyModule
from forkpoint.selection import scope_groups, select
from forkpoint.types import Completion, FinishReason, Group, Problem, Prompt, Rollout, Score

BASE = {"length": 128, "group": 8, "keep_fraction": 0.2, "vocabulary": 32_000}
AXES: dict[str, tuple[float, ...]] = {
    "length": (64, 128, 256, 512),
    "group": (2, 4, 8, 16),
    "keep_fraction": (0.05, 0.2, 0.5, 1.0),
    "vocabulary": (8_000, 32_000, 151_936),
}
LONG = (1000, 2000, 4000)
"""Lengths of more points, in groups of two."""
PROMPT = 48
PASS_TOKENS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.parse_args()
    named = [(axis, {axis: value}) for axis, values in AXES.items() for value in values]
    named += [("length", {"length": value, "group": 2}) for value in LONG]
    points = []
    for axis, own in named:
        sizes = {**BASE, **own}
        model = qwen3(vocabulary=int(sizes["vocabulary"]), layers=4, width=256)
        points.append({"axis": axis, **sizes, "ways": measure(model, sizes)})
    print(json.dumps({"points": points}))


def measure(model: Any, sizes: dict[str, float]) -> dict[str, Any]:
    """Seconds and memory of every way, one after the other."""
    config = parse_config({"selection": {"keep_fraction": sizes["keep_fraction"]}})
    groups = [made_up(sizes, serial) for serial in range(2)]
    batch = build_batch(groups, advantage="grpo")
    assert batch.rollout_entropies_T is not None
    groups_T = scope_groups(batch, "batch", [])
    chosen = select(batch, batch.rollout_entropies_T, groups_T, config.selection, seed=0, step=1)
    batch = batch.with_streams(old_logprobs_T=batch.rollout_logprobs_T)
    batch = with_coefficients(batch, chosen.weights_T, groups_T, config)
    wanted_T = needed_rows(batch, config.loss)
    found = {}
    for way in ("dense", "sparse", "local"):
        policy = PolicyModule(model, gradient=way, temperature=1.0)
        for _ in range(2):
            model.zero_grad()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            before = resident_gb()
            reset_peak()
            started = time.perf_counter()
            for sequences in policy.passes(batch, wanted_T, max_tokens=PASS_TOKENS):
                micro = batch.take(sequences)
                stats = policy(micro, wanted_T[batch.rows_of(sequences)])
                batch_loss(micro, stats, config.loss).loss.backward()
            seconds = time.perf_counter() - started
            found[way] = {"seconds": seconds, "memory_gb": resident_gb("VmHWM") - before}
    return found


def made_up(sizes: dict[str, float], serial: int) -> Group:
    """A group of random completions, lengths from half of ``length`` to all of it."""
    generator = torch.Generator().manual_seed(serial)
    count, longest = int(sizes["group"]), int(sizes["length"])

    def ids(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 8000, (size,), generator=generator).tolist())

    rollouts = []
    for sample in range(count):
        length = longest // 2 + sample * (longest - longest // 2) // max(1, count - 1)
        completion = Completion(
            token_ids=ids(length),
            logprobs=(-9.0,) * length,
            entropies=tuple(torch.rand(length, generator=generator).tolist()),
            finish_reason=FinishReason.STOP,
            text="",
        )
        reward = float(sample % 2)
        rollouts.append(
            Rollout(
                completion=completion,
                score=Score(reward=reward, verdict=reward, parts={"task": reward}),
            )
        )
    prompt = Prompt(problem=Problem(id=str(serial), prompt=""), token_ids=ids(PROMPT))
    return Group(prompt=prompt, serial=serial, rollouts_G=tuple(rollouts))


if __name__ == "__main__":
    main()
