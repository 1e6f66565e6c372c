"""Dense against sparse gradients on the same batches, side by side: ``make bench``.

Each pair of passes runs one after the other in this process, so that the machine's drift meets
both; medians and the ratio of the medians are printed, and the error between the two gradients.
Two cases: the laboratory policy on a step it sampled itself, and a randomly initialised Qwen3 of 2
narrow layers with a vocabulary of 151,936, where the language-model head is nearly all of the work.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from forkpoint.batching import build_batch, split_microbatches
from forkpoint.config import RunConfig, parse_config
from forkpoint.losses import policy_loss, with_coefficients
from forkpoint.losses.policy_loss import needed_rows
from forkpoint.policy import PolicyModule
from forkpoint.rollouts import build_sampling, collect_groups
from forkpoint.rollouts.base import SamplingSettings
from forkpoint.selection import scope_groups, select
from forkpoint.types import TokenBatch

QWEN3_VOCABULARY = 151_936


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    config = parse_config({"rollout": {"prompts_per_step": 16, "group_size": 8}})
    model, batch = sampled_step(config)
    compare("laboratory policy, one sampled step", model, batch, config, repeats)
    few = batch.take(list(range(12)))
    compare("Qwen3 head, 151,936 words", wide_model(), few, config, repeats)


def sampled_step(config: RunConfig) -> tuple[Any, TokenBatch]:
    """The shipped policy and a step's rollouts of it, zero-variance groups included."""
    parts = build_sampling(config)
    try:
        rollouts = collect_groups(
            task=parts.task,
            prompter=parts.prompter,
            engine=parts.engine,
            scorer=parts.scorer,
            config=config.rollout.model_copy(update={"dynamic_sampling": False}),
            settings=SamplingSettings(max_new_tokens=160, temperature=1.0, seed=0, step=1),
            first_serial=0,
        )
    finally:
        parts.close()
    return parts.loaded.model, selected(build_batch(rollouts.groups, advantage="grpo"), config)


def selected(batch: TokenBatch, config: RunConfig) -> TokenBatch:
    """The batch with its forks chosen and their coefficients set."""
    groups_T = scope_groups(batch, "batch", [])
    assert batch.rollout_entropies_T is not None
    chosen = select(batch, batch.rollout_entropies_T, groups_T, config.selection, seed=0, step=1)
    batch = batch.with_streams(old_logprobs_T=batch.rollout_logprobs_T)
    return with_coefficients(batch, chosen.weights_T, groups_T, config)


def wide_model() -> Any:
    """A narrow Qwen3 with the real model's vocabulary."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=QWEN3_VOCABULARY,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
        )
    ).eval()


def compare(title: str, model: Any, batch: TokenBatch, config: RunConfig, repeats: int) -> None:
    """Time both ways ``repeats`` times in turn and print what came out."""
    assert batch.weights_T is not None
    ways: dict[str, Callable[[], torch.Tensor]] = {
        kind: lambda kind=kind: gradient(model, batch, config, kind) for kind in ("dense", "sparse")
    }
    results = {kind: run() for kind, run in ways.items()}  # once to warm up
    seconds: dict[str, list[float]] = {kind: [] for kind in ways}
    for _ in range(repeats):
        for kind, run in ways.items():
            started = time.perf_counter()
            run()
            seconds[kind].append(time.perf_counter() - started)
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    error = (results["sparse"] - results["dense"]).norm() / results["dense"].norm()
    kept = int((batch.weights_T > 0).sum())
    alive = len(batch.sequence_T[batch.weights_T > 0].unique())
    print(f"\n{title}: {batch.num_sequences} sequences ({alive} with a selected token), ", end="")
    print(f"{batch.num_tokens} tokens, {kept} selected")
    for kind, values in seconds.items():
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"  {kind:<7}{medians[kind]:8.3f} s   ({spread}, {repeats} runs)")
    print(f"  dense / sparse {medians['dense'] / medians['sparse']:.2f}x", end="")
    print(f"   relative error of the gradient {error:.1e}")


def gradient(model: Any, batch: TokenBatch, config: RunConfig, kind: str) -> torch.Tensor:
    """The whole batch's policy gradient, flat."""
    policy = PolicyModule(model, gradient=kind, temperature=1.0)
    model.zero_grad()
    for sequences in split_microbatches(batch, max_tokens=2048):
        micro = batch.take(sequences)
        wanted_T = needed_rows(micro, config.loss)
        if wanted_T.any() or kind == "dense":
            policy_loss(micro, policy(micro, wanted_T), config.loss).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


if __name__ == "__main__":
    main()
