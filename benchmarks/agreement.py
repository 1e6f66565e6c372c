"""How far sparse and local gradients are from the dense one; a line of JSON.

On recorded completions of SmolLM2, or on a step that a policy of the laboratory samples itself.
"""

import argparse
import json
from typing import Any

import torch

from benchmarks.workloads import load, records, workload
from forkpoint.batching import build_batch
from forkpoint.config import RunConfig, parse_config
from forkpoint.losses import batch_loss, with_coefficients
from forkpoint.losses.batch_loss import needed_rows
from forkpoint.policy import PolicyModule
from forkpoint.sampling import build_sampling, collect_groups
from forkpoint.sampling.base import SamplingSettings
from forkpoint.selection import scope_groups, select
from forkpoint.types import TokenBatch


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--keep-fraction", type=float, default=0.2)
    parser.add_argument("--lab", help="``lab``, or a checkpoint folder; default: SmolLM2.")
    parser.add_argument("--sequences", type=int, default=16, help="Of SmolLM2's batch.")
    parser.add_argument("--float64", action="store_true", help="Also against a model in float64.")
    options = parser.parse_args()
    config = parse_config({"selection": {"keep_fraction": options.keep_fraction}})
    model, batch = lab_step(options.lab) if options.lab else recorded_step(options.sequences)
    batch = selected(batch, config)
    exact = gradients(model, batch, config, "dense")
    whole = torch.cat([g.flatten() for g in exact.values()])
    found: dict[str, Any] = {"norm": float(whole.norm())}
    flats = {"dense": whole}
    for way in ("sparse", "local"):
        got = gradients(model, batch, config, way)
        flats[way] = flat = torch.cat([got[name].flatten() for name in exact])
        found[way] = float((flat - whole).norm() / whole.norm())
        found[f"{way}_cosine"] = cosine(flat, whole)
        found[f"{way}_norm_ratio"] = float(flat.norm() / whole.norm())
        found[f"{way}_by_layer"] = by_layer(got, exact)
    if options.float64:
        wide = gradients(model.double(), batch, config, "dense")
        truth = torch.cat([wide[name].flatten() for name in exact])
        for way, flat in flats.items():
            found[f"{way}_from_float64"] = float((flat.double() - truth).norm() / truth.norm())
    print(json.dumps(found))


def recorded_step(sequences: int) -> tuple[Any, TokenBatch]:
    """SmolLM2 and some of its completions."""
    batch = build_batch(records(workload("no_zero")), advantage="grpo")
    return load("smollm2"), batch.take(range(sequences))


def lab_step(path: str) -> tuple[Any, TokenBatch]:
    """A policy of the laboratory and a step's accepted groups."""
    config = parse_config({"model": {"path": path}, "rollout": {"prompts_per_step": 12}})
    parts = build_sampling(config)
    try:
        rollouts = collect_groups(
            parts,
            config.rollout,
            SamplingSettings(max_new_tokens=160, temperature=1.0, seed=0, step=1),
            first_serial=0,
        )
    finally:
        parts.close()
    return parts.loaded.model, build_batch(rollouts.accepted, advantage="grpo")


def selected(batch: TokenBatch, config: RunConfig) -> TokenBatch:
    """The batch with its forks chosen and their coefficients set."""
    groups_T = scope_groups(batch, "batch", [])
    assert batch.rollout_entropies_T is not None
    chosen = select(batch, batch.rollout_entropies_T, groups_T, config.selection, seed=0, step=1)
    batch = batch.with_streams(old_logprobs_T=batch.rollout_logprobs_T)
    return with_coefficients(batch, chosen.weights_T, groups_T, config)


def gradients(
    model: Any, batch: TokenBatch, config: RunConfig, way: str
) -> dict[str, torch.Tensor]:
    """The whole batch's policy gradient, by parameter."""
    policy = PolicyModule(model, gradient=way, temperature=1.0)
    model.zero_grad()
    wanted_T = needed_rows(batch, config.loss)
    for sequences in policy.passes(batch, wanted_T, max_tokens=2048):
        micro = batch.take(sequences)
        stats = policy(micro, wanted_T[batch.rows_of(sequences)])
        batch_loss(micro, stats, config.loss).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def by_layer(
    got: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]
) -> dict[str, dict[str, float]]:
    """Cosine and norm ratio of each layer's gradient; embeddings and the last norm by name."""
    names: dict[str, list[str]] = {}
    for name in exact:
        part = name.split(".layers.")[1].split(".")[0] if ".layers." in name else name
        names.setdefault(part, []).append(name)
    found = {}
    for part, members in names.items():
        a, b = (torch.cat([side[n].flatten() for n in members]) for side in (got, exact))
        found[part] = {"cosine": cosine(a, b), "norm_ratio": float(a.norm() / b.norm())}
    return found


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


if __name__ == "__main__":
    main()
