"""What a step's rollouts say, as the metrics of docs/run-directory.md."""

import resource
import sys
from collections import defaultdict

import numpy as np

from forkpoint.sampling.collect import StepRollouts
from forkpoint.types import FinishReason, Metric


def rollout_metrics(rollouts: StepRollouts) -> dict[str, float]:
    """Metrics over everything sampled in the step, accepted or not.

    The mean reward of accepted groups alone would hardly move as the policy learns: acceptance
    keeps groups near half right.
    """
    everything = [r for group in rollouts.groups for r in group.rollouts_G]
    completions = [r.completion for r in everything]
    rewards = [r.score.reward for r in everything if r.score.reward is not None]
    lengths = [len(c.token_ids) for c in completions]
    truncated = sum(c.finish_reason is FinishReason.LENGTH for c in completions)
    parts: defaultdict[str, Metric] = defaultdict(lambda: Metric(0.0, 0))
    for rollout in everything:
        for name, value in rollout.score.parts.items():
            if value is not None:
                parts[name] += Metric(value, 1)
    entropies = [c.entropies for c in completions if c.entropies is not None]
    captured = bool(completions) and len(entropies) == len(completions)
    return {
        "reward/mean": Metric(sum(rewards), len(rewards)).mean,
        "reward/accepted_groups": len(rollouts.accepted),
        "reward/sampled_groups": len(rollouts.groups),
        "reward/errors": sum(r.score.error is not None for r in everything),
        "reward/timeouts": sum(r.score.timed_out for r in everything),
        "rollout/rounds": rollouts.rounds,
        "completion/tokens": sum(lengths),
        "completion/length_mean": Metric(sum(lengths), len(lengths)).mean,
        "completion/truncated_fraction": Metric(truncated, len(completions)).mean,
        **{f"reward/part/{name}": metric.mean for name, metric in parts.items()},
        **(entropy_summary(np.concatenate(entropies)) if captured else {}),
    }


def entropy_summary(entropies: np.ndarray) -> dict[str, float]:
    """Mean, 80th percentile and share of near-certain tokens, in nats."""
    return {
        "entropy/mean": float(entropies.mean(dtype=np.float64)),
        "entropy/p80": float(np.quantile(entropies, 0.8)),
        "entropy/share_below_0.01": float((entropies < 0.01).mean()),
    }


def peak_memory() -> dict[str, float]:
    """The most memory the process has held so far, in 10^9 bytes: the host's, and where CUDA is
    used the tensors' on the device that has most."""
    import torch

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"memory/peak_gb": peak * (1 if sys.platform == "darwin" else 1024) / 1e9}
    if torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        found["memory/cuda_peak_gb"] = max(map(torch.cuda.max_memory_allocated, devices)) / 1e9
    return found
