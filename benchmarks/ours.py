"""One optimizer step of this package on a recorded batch; a line of JSON comes out.

python benchmarks/ours.py --model smollm2 --workload half_zero --gradient sparse
"""

import argparse
import json
import time
from typing import Any

import torch

from benchmarks.memory import reset_peak, resident_gb, step_memory_gb
from benchmarks.workloads import load, records, workload
from forkpoint.batching import build_batch
from forkpoint.config import RunConfig, parse_config
from forkpoint.policy import PolicyModule
from forkpoint.policy.live import LiveSet
from forkpoint.training.optimizer import Optimizer
from forkpoint.training.step import train_step
from forkpoint.types import TokenBatch

MICRO_BATCH_TOKENS = 1228
"""Two tree rows of SmolLM2."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--workload", default="half_zero")
    parser.add_argument("--gradient", default="sparse")
    parser.add_argument("--sequences", type=int, help="Sequences in one pass; default: tokens.")
    parser.add_argument("--micro-batch-tokens", type=int, default=MICRO_BATCH_TOKENS)
    parser.add_argument("--keep-fraction", type=float, default=0.2)
    parser.add_argument("--live", default="looked_at", help="With local: its dial.")
    parser.add_argument("--live-fraction", type=float, default=0.35)
    parser.add_argument("--kept", action="store_true", help="Keys are there, as from sampling.")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    config = settings(options)
    batch = build_batch(records(workload(options.workload)), advantage="grpo")
    model = load(options.model)
    recorded = options.model == "smollm2" and options.workload != "equal"
    live = LiveSet(
        kind=options.live,
        fraction=options.live_fraction,
        first_hop=not options.kept,  # which needs a pass of its own
    )
    found = measure(model, batch, config, options.repeats, recorded=recorded, live=live)
    print(json.dumps(found))


def settings(options: argparse.Namespace) -> RunConfig:
    return parse_config(
        {
            "rollout": {"group_size": 8, "max_new_tokens": 256},
            "selection": {"keep_fraction": options.keep_fraction},
            # So small that every repeat is on-policy: the sampler's numbers stay the policy's.
            "optim": {"lr": 1e-12},
            "training": {
                "gradient": options.gradient,
                "mini_batches": 1,
                "micro_batch_tokens": options.micro_batch_tokens,
                "micro_batch_sequences": options.sequences,
            },
        }
    )


def measure(
    model: Any, batch: TokenBatch, config: RunConfig, repeats: int, *, recorded: bool, live: LiveSet
) -> dict[str, Any]:
    """Seconds of each of ``repeats`` optimizer steps, and the first one's memory.

    ``recorded``: the batch's log-probabilities are the model's own. Without the first hop its keys
    and values are there before the clock starts, as they are from sampling.
    """
    kept = not live.first_hop
    policy = PolicyModule(model, gradient=config.training.gradient, temperature=1.0, live=live)
    optimizer = Optimizer(model, config.optim)
    parameters = sum(p.numel() for p in model.parameters())
    before = resident_gb()  # keys that are kept, and what the pass below leaves, count
    if kept or not recorded:  # this model never sampled this: take what it would have said
        stats = policy.annotate(batch, max_tokens=2048, keep_keys=kept)
        batch = batch.with_streams(
            rollout_logprobs_T=stats.logprobs_R, rollout_entropies_T=stats.entropies_R
        )
    reset_peak()
    seconds, result, memory = [], None, 0.0
    for step in range(repeats):
        if kept and step:  # an update makes the keys void
            policy.annotate(batch, max_tokens=2048, keep_keys=True)
        started = time.perf_counter()
        result = train_step(policy, optimizer, batch, config, step=step, same_weights=True)
        seconds.append(time.perf_counter() - started)
        memory = memory or step_memory_gb(before, parameters)
    assert result is not None
    work = {k: v for k, v in result.metrics.items() if k.startswith(("work/", "selection/"))}
    return {
        "seconds": seconds,
        "memory_gb": memory,
        "resident_gb": resident_gb("VmHWM"),
        "threads": torch.get_num_threads(),
        **work,
        **{k: v for k, v in result.metrics.items() if k.startswith("mismatch/")},
    }


if __name__ == "__main__":
    main()
