"""The dial of the local gradient: how near to the exact one, at what price.

    python -m benchmarks.dial cosines trials --case lab
    python -m benchmarks.dial times --case long
    python -m benchmarks.dial stale

Cosines and norms against the exact gradient for shares of live positions, with an oracle (which
knows how much gradient reaches each position) and random positions as bounds, by layer and by kind
of matrix, on three batches of each case; times in turns; how wrong log-probabilities get where keys
are read after the updates that made them void. Cases: ``lab`` (the shipped policy of the
walk), ``lab_trained``, ``short`` (recorded completions of SmolLM2), ``medium`` (of 200 to 256
tokens, sampled here), ``long`` (of 750 to 1,000). Each command replaces its part of
benchmarks/results/dial.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.agreement import cosine, selected
from benchmarks.dial_trials import layers_of, trials
from benchmarks.workloads import load, records, workload
from forkpoint.api import train
from forkpoint.batching import build_batch
from forkpoint.batching.tree import TreeRows, lay_trees
from forkpoint.config import RunConfig, load_config, parse_config
from forkpoint.environment import environment
from forkpoint.losses import batch_loss
from forkpoint.losses.batch_loss import needed_rows
from forkpoint.policy import PolicyModule, local
from forkpoint.policy.body import body_of
from forkpoint.policy.live import LiveSet, live_positions, slots_of, wanted_positions
from forkpoint.policy.watch import Watch, pull_of
from forkpoint.runs.atomic import write_json
from forkpoint.sampling import build_sampling, collect_groups
from forkpoint.sampling.base import SamplingSettings
from forkpoint.training.optimizer import Optimizer
from forkpoint.types import Group, Rollout, Score, TokenBatch

RESULTS = Path(__file__).parent / "results" / "dial.json"
SHARES = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
BOUND_SHARES = (0.2, 0.35, 0.5)
BATCHES = 3
SAMPLED = {"medium": (256, 200, 8), "long": (1000, 750, 4)}
"""Tokens of a completion at most and at least, and completions."""
PASS_TOKENS = 2048
LEARNING_RATES = (1e-4, 1e-3)
UPDATES = 4
CASES = ("lab", "lab_trained", "short", "medium", "long")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="+", choices=("cosines", "trials", "times", "stale"))
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--batch", type=int, action="append", help="default: all three")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    machine = {name: value for name, value in environment().items() if name != "command"}
    made = {"date": date.today().isoformat(), "environment": machine}

    def write(part: str, case: str) -> None:
        result.setdefault("made", {}).setdefault(part, {})[case] = made
        write_json(RESULTS, result | flat(result))

    on_each = {"cosines": cosines, "trials": tried}
    parts = [part for part in options.parts if part in on_each]
    for case in options.case or CASES:
        lab = case.startswith("lab")
        serials = (options.batch or range(BATCHES)) if parts else ()
        for serial, step in zip(serials, steps(case, serials), strict=True):
            for part in parts:
                rows = result.setdefault(part, {}).setdefault(case, [])
                rows[serial : serial + 1] = [on_each[part](*step, case)]
                write(part, case)
        if "stale" in options.parts and lab:
            found = {lr: stale(case, lr) for lr in LEARNING_RATES}
            result.setdefault("stale", {})[case] = found
            write("stale", case)
        if "times" in options.parts and not lab:
            result.setdefault("times", {})[case] = times(case, options.repeats)
            write("times", case)


# ---- what is measured on ------------------------------------------------------------------------


def steps(case: str, serials: Iterable[int]) -> Iterator[tuple[Any, TokenBatch, RunConfig]]:
    """Some steps' batches with their forks chosen, each with the model that sampled it."""
    config = parse_config({})
    if case.startswith("lab"):
        with tempfile.TemporaryDirectory() as folder:
            path = trained(Path(folder)) if case == "lab_trained" else "lab:walk"
            for serial in serials:
                model, groups = lab_groups(path, serial)
                yield model, selected(build_batch(groups, advantage="grpo"), config), config
        return
    model = load("smollm2")
    for serial in serials:
        group = (
            records(workload("no_zero"))[serial] if case == "short" else sampled_group(case, serial)
        )
        yield model, selected(build_batch([group], advantage="grpo"), config), config


def trained(folder: Path) -> str:
    """A checkpoint of the walk after 40 steps on its forks."""
    settings = ["training.steps=40", "evaluation.every=0", "checkpoint.every=0"]
    train(load_config("lab_demo", settings), folder / "run")
    return str(folder / "run" / "checkpoints" / "step_00040")


def lab_groups(path: str, serial: int) -> tuple[Any, list[Group]]:
    config = parse_config(
        {
            "model": {"path": path},
            "task": {"type": "lab", "world": "walk"},
            "rollout": {"prompts_per_step": 12, "max_new_tokens": 48},
        }
    )
    parts = build_sampling(config)
    settings = SamplingSettings(max_new_tokens=48, temperature=1.0, seed=serial, step=1)
    try:
        rollouts = collect_groups(parts, config.rollout, settings, first_serial=1000 * serial)
    finally:
        parts.close()
    return parts.loaded.model, list(rollouts.accepted)


def sampled_group(case: str, serial: int) -> Group:
    """Answers of a pretrained model to a sum, of which long ones are kept, two at least; the
    rewards are made up, 0 and 1 by turns, for nobody judges such a text."""
    tokens, least, wanted = SAMPLED[case]
    config = parse_config(
        {
            "model": {"path": "models/smollm2"},
            "task": {
                "type": "gym",
                "name": "chain_sum",
                "instruction": " Explain every step at length, then check it in three other ways.",
            },
            "rollout": {
                "prompts_per_step": 1,
                "group_size": 16,
                "max_new_tokens": tokens,
                "dynamic_sampling": False,
            },
        }
    )
    parts = build_sampling(config)
    settings = SamplingSettings(max_new_tokens=tokens, temperature=1.0, seed=serial, step=1)
    try:
        rollouts = collect_groups(parts, config.rollout, settings, first_serial=serial)
    finally:
        parts.close()
    (group,) = rollouts.groups
    long = [r.completion for r in group.rollouts_G if len(r.completion.logprobs) >= least]
    if len(long) < 2:
        raise SystemExit(f"only {len(long)} of {len(group.rollouts_G)} answers were long enough")
    made = tuple(
        Rollout(completion=c, score=Score(reward=float(i % 2), parts={}))
        for i, c in enumerate(long[:wanted])
    )
    return Group(prompt=group.prompt, serial=serial, rollouts_G=made)


# ---- how near -----------------------------------------------------------------------------------


def cosines(model: Any, batch: TokenBatch, config: RunConfig, case: str) -> dict[str, Any]:
    """Every way against the exact gradient, on one batch."""
    exact = gradient(model, batch, config, "sparse")
    whole = torch.cat([g.flatten() for g in exact.values()])
    found: dict[str, Any] = {"tokens": batch.num_tokens, "ways": []}

    def record(
        way: str, share: float, hop: bool, scores: dict[bytes, Tensor] | None = None
    ) -> None:
        live = LiveSet(kind="looked_at" if way == "oracle" else way, fraction=share, first_hop=hop)  # pyright: ignore[reportArgumentType]
        got = gradient(model, batch, config, "local", live, scores)
        flattened = torch.cat([got[name].flatten() for name in exact])
        row = {
            "way": way,
            "share": share,
            "first_hop": hop,
            "live": PARTS["live"],
            "cosine": cosine(flattened, whole),
            "norm": float(flattened.norm() / whole.norm()),
        }
        if (way, share, hop) == ("looked_at", 0.35, True):
            row["by_layer"] = apart(got, exact, layer_of)
            row["by_kind"] = apart(got, exact, kind_of)
        found["ways"].append(row)
        print(case, {k: v for k, v in row.items() if not k.startswith("by_")}, flush=True)

    reaches = gradient_norms(model, batch, config)
    for hop, shares in ((True, SHARES), (False, BOUND_SHARES)):
        record("forks", 0.2, hop)
        for share in shares:
            record("looked_at", share, hop)
    for share in BOUND_SHARES:
        record("random", share, True)
        record("oracle", share, True, reaches)
    return found


def tried(model: Any, batch: TokenBatch, config: RunConfig, case: str) -> dict[str, float]:
    """The cosines of what was tried beside, on one batch."""
    found = trials(
        lambda way, live: gradient(model, batch, config, way, live), layers_of(model), kind_of
    )
    print(case, {name: round(value, 4) for name, value in found.items()}, flush=True)
    return found


PARTS: dict[str, float] = {}
"""The share of positions that was live in the last gradient."""


def gradient(
    model: Any,
    batch: TokenBatch,
    config: RunConfig,
    way: str,
    live: LiveSet | None = None,
    scores: dict[bytes, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The whole batch's policy gradient, by parameter; see ``chosen_by`` for ``scores``."""
    policy = PolicyModule(model, gradient=way, temperature=1.0, live=live)
    model.zero_grad()
    with chosen_by(scores):
        run(policy, batch, config)
    work = policy.take_work()
    PARTS["live"] = work.live_positions / max(1, work.row_positions)
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def run(policy: PolicyModule, batch: TokenBatch, config: RunConfig) -> None:
    wanted_T = needed_rows(batch, config.loss)
    for sequences in policy.passes(batch, wanted_T, max_tokens=PASS_TOKENS):
        micro = batch.take(sequences)
        stats = policy(micro, wanted_T[batch.rows_of(sequences)])
        batch_loss(micro, stats, config.loss).loss.backward()


def gradient_norms(model: Any, batch: TokenBatch, config: RunConfig) -> dict[bytes, Tensor]:
    """For each pass's rows the norm of the exact gradient that reaches a position, summed over the
    inputs of all layers."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    policy = PolicyModule(model, gradient="sparse", temperature=1.0)
    layers = [m for m in body_of(model).modules() if isinstance(m, GradientCheckpointingLayer)]
    found: dict[bytes, Tensor] = {}
    inputs: list[Tensor] = []
    ids: list[Tensor] = []

    def keep(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = given[0] if given else named["hidden_states"]
        hidden.retain_grad()
        inputs.append(hidden)

    hooks = [m.register_forward_pre_hook(keep, with_kwargs=True) for m in layers]
    hooks.append(
        body_of(model).register_forward_pre_hook(
            lambda _, __, named: ids.append(named["input_ids"]), with_kwargs=True
        )
    )
    wanted_T = needed_rows(batch, config.loss)
    for sequences in policy.passes(batch, wanted_T, max_tokens=PASS_TOKENS):
        micro = batch.take(sequences)
        stats = policy(micro, wanted_T[batch.rows_of(sequences)])
        batch_loss(micro, stats, config.loss).loss.backward()
        norms = sum(h.grad.square().sum(-1) for h in inputs if h.grad is not None)
        found[ids[-1].numpy().tobytes()] = torch.as_tensor(norms).float()
        inputs.clear()
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    return found


@contextmanager
def chosen_by(scores: dict[bytes, Tensor] | None) -> Iterator[None]:
    """Let other scores than the attention's choose, known by the ids of the rows."""

    def positions(rows: TreeRows, live: LiveSet, _: Tensor | None) -> Tensor:
        assert scores is not None
        return live_positions(rows, live, scores[rows.input_ids_BL.numpy().tobytes()])

    if scores is not None:
        local.live_positions = positions  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        local.live_positions = live_positions


def layer_of(name: str) -> str:
    return name.split(".layers.")[1].split(".")[0] if ".layers." in name else "outside"


def kind_of(name: str) -> str:
    return name.split(".")[-2]


def apart(
    got: dict[str, Tensor], exact: dict[str, Tensor], part_of: Callable[[str], str]
) -> dict[str, dict[str, float]]:
    """Cosine and ratio of norms of each part of the gradient."""
    members: dict[str, list[str]] = {}
    for name in exact:
        members.setdefault(part_of(name), []).append(name)
    found = {}
    for part, names in members.items():
        a, b = (torch.cat([side[n].flatten() for n in names]) for side in (got, exact))
        found[part] = {"cosine": cosine(a, b), "norm": float(a.norm() / b.norm())}
    return found


# ---- at what price ------------------------------------------------------------------------------


def times(case: str, repeats: int) -> dict[str, Any]:
    """Seconds of a gradient, sparse and local, with a pass of its own and with kept keys; and of a
    pass without gradient, with and without scores. One after the other, in turns."""
    model, batch, config = next(steps(case, [0]))
    policies: dict[str, PolicyModule] = {
        "sparse": PolicyModule(model, gradient="sparse", temperature=1.0)
    }
    for share in (0.2, 0.35, 0.5):
        for name, hop in (("own pass, first hop", True), ("own pass", False), ("kept", False)):
            live = LiveSet(fraction=share, first_hop=hop)
            policy = PolicyModule(model, gradient="local", temperature=1.0, live=live)
            policies[f"{name}, {share}"] = policy
            if name == "kept":
                policy.annotate(batch, max_tokens=PASS_TOKENS, keep_keys=True)
            else:
                policy.keys = None
    found: dict[str, list[float]] = {name: [] for name in policies}
    found |= {"pass": [], "pass with scores": []}
    for _ in range(repeats):
        for name, policy in policies.items():
            model.zero_grad()
            found[name].append(seconds(lambda policy=policy: run(policy, batch, config)))
        for name, scores in (("pass", False), ("pass with scores", True)):
            found[name].append(
                seconds(
                    lambda scores=scores: whole_passes(policies["sparse"], batch, config, scores)
                )
            )
    return {"tokens": batch.num_tokens, "sequences": batch.num_sequences, "seconds": found}


def whole_passes(policy: PolicyModule, batch: TokenBatch, config: RunConfig, scores: bool) -> None:
    """The pass without gradient of every micro-batch, as ``local`` makes it."""
    wanted_T = needed_rows(batch, config.loss)
    for sequences in policy.passes(batch, wanted_T, max_tokens=PASS_TOKENS):
        micro = batch.take(sequences)
        rows = lay_trees(micro, wanted_T[batch.rows_of(sequences)], policy.row_tokens)
        looking = slots_of(wanted_positions(rows))
        watch = Watch(rows, looking, looking.take(pull_of(micro, rows))) if scores else None
        local.fill_cache(policy.model, rows, keep=False, watch=watch)


# ---- keys of weights that are gone --------------------------------------------------------------


def stale(case: str, lr: float) -> list[dict[str, float]]:
    """After each update of a step on one batch: how far log-probabilities over the keys of its
    first weights are from the exact ones, and how far those have moved from the old ones."""
    model, batch, config = next(steps(case, [0]))
    live = LiveSet(first_hop=False, stale_keys=True)
    policy = PolicyModule(model, gradient="local", temperature=1.0, live=live)
    old_T = policy.annotate(batch, max_tokens=PASS_TOKENS, keep_keys=True).logprobs_R
    optimizer = Optimizer(model, config.optim.model_copy(update={"lr": lr}))
    wanted_T = needed_rows(batch, config.loss)
    rows = []
    for update in range(1, UPDATES + 1):
        run(policy, batch, config)
        optimizer.step()
        policy.weights_changed()
        found = []
        for sequences in policy.passes(batch, wanted_T, max_tokens=PASS_TOKENS):
            micro, own = batch.take(sequences), wanted_T[batch.rows_of(sequences)]
            stats = policy(micro, own)
            with torch.no_grad(), policy.exact():
                exact = policy(micro, own)
            old = old_T[batch.rows_of(sequences)][stats.rows_R]
            found.append((stats.logprobs_R.detach() - exact.logprobs_R, exact.logprobs_R - old))
        wrong, moved = (torch.cat(x).abs() for x in zip(*found, strict=True))
        row = {"update": update, "wrong_mean": float(wrong.mean()), "wrong_max": float(wrong.max())}
        row |= {"moved_mean": float(moved.mean()), "moved_max": float(moved.max())}
        print(case, lr, row, flush=True)
        rows.append(row)
    return rows


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def flat(result: dict[str, Any]) -> dict[str, float]:
    """The headline: medians over batches."""
    found: dict[str, float] = {}
    for case, share, name in (
        ("long", 0.2, "cosine_1000_tokens_at_0.20"),
        ("long", 0.35, "cosine_1000_tokens_at_0.35"),
        ("lab", 0.35, "cosine_lab_at_0.35"),
    ):
        values = [
            row["cosine"]
            for one in result.get("cosines", {}).get(case, [])
            for row in one["ways"]
            if (row["way"], row["share"], row["first_hop"]) == ("looked_at", share, True)
        ]
        if values:
            found[name] = statistics.median(values)
    timed = result.get("times", {}).get("long")
    if timed:
        median = {name: statistics.median(values) for name, values in timed["seconds"].items()}
        for share in (0.2, 0.35):
            limit = 1 / (1 / 3 + share)
            ratio = median["sparse"] / median[f"own pass, first hop, {share}"]
            found[f"sparse_over_local_over_limit_at_{share:.2f}"] = ratio / limit
        scored = median["pass with scores"] - median["pass"]
        found["score_share_of_nograd_pass"] = scored / median["pass"]
    return found


if __name__ == "__main__":
    main()
