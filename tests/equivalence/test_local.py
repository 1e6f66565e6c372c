"""The local gradient is exactly what it says: keys and values of other positions held constant."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from forkpoint.batching import build_batch
from forkpoint.batching.tree import lay_trees
from forkpoint.config import parse_config
from forkpoint.losses import policy_loss
from forkpoint.losses.policy_loss import needed_rows
from forkpoint.policy import PolicyModule
from forkpoint.policy.keys import KeyStore, SequenceKeys, keys_of
from forkpoint.policy.load import LoadedModel
from forkpoint.policy.local import fill_cache
from forkpoint.sampling.base import SampleRequest, SamplingSettings
from forkpoint.sampling.key_keeper import KeyKeeper
from forkpoint.sampling.rows import PLAIN
from forkpoint.sampling.transformers import TransformersEngine
from forkpoint.training.optimizer import Optimizer
from forkpoint.training.step import train_step
from forkpoint.types import Group, Problem, Prompt, Rollout, Score, TokenBatch
from tests.conftest import EOS, NumberTokenizer, make_batch, tiny_model
from tests.equivalence.test_gradients import gradient, prepared


def constant_others(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **more: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention whose keys and values carry gradient to their own position alone."""
    groups = module.num_key_value_groups
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    length = query.shape[2]
    own = torch.eye(length, dtype=torch.bool)
    cached = query @ key.detach().transpose(2, 3)
    scores = torch.where(own, query @ key.transpose(2, 3), cached) * more["scaling"]
    scores = scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -torch.inf)
    shares = scores.softmax(-1)
    out = torch.where(own, shares, 0.0) @ value + torch.where(own, 0.0, shares) @ value.detach()
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("constant_others", constant_others)


def exact_local(batch: TokenBatch, config: Any, temperature: float) -> torch.Tensor:
    """By definition: the dense way over that attention, one sequence at a time."""
    model = tiny_model(tied=True)
    model.set_attn_implementation("constant_others")
    policy = PolicyModule(model, gradient="dense", temperature=temperature)
    for b in range(batch.num_sequences):
        micro = batch.take([b])
        # Values alone would not do: positions that are not selected may not pass gradient either,
        # and they cannot, since nothing they made is read but by themselves.
        policy_loss(micro, policy(micro, micro.pool_T), config.loss).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("keep_fraction", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_local_is_the_gradient_with_other_keys_and_values_constant(
    keep_fraction: float, temperature: float
) -> None:
    config = parse_config({"selection": {"keep_fraction": keep_fraction}})
    batch = prepared(make_batch(), config, temperature)
    expected = exact_local(batch, config, temperature)
    whole = [list(range(9))]
    value, exact = gradient(batch, config, whole, "dense", temperature)
    for cut in (whole, [[8, 0, 3], [5, 4], [1, 2, 7, 6]]):
        got_value, got = gradient(batch, config, cut, "local", temperature)
        assert got_value == pytest.approx(value, rel=1e-5, abs=1e-7)  # the loss itself is exact
        assert (got - expected).norm() / expected.norm() < 1e-5
    assert (expected - exact).norm() / exact.norm() > 0.05  # and it is another gradient


def test_kept_keys_and_values_give_the_same_gradient() -> None:
    config = parse_config({"selection": {"keep_fraction": 0.3}})
    batch = prepared(make_batch(), config)
    wanted = needed_rows(batch, config.loss)
    flats = []
    for keeps in (False, True):
        model = tiny_model(tied=True)
        policy = PolicyModule(model, gradient="local", temperature=1.0)
        assert policy.keys == {}
        if keeps:  # of whole sequences, laid out in another way than the wanted tokens will be
            rows = lay_trees(batch, torch.ones_like(wanted), 24)
            policy.keys.update(keys_of(rows, batch, fill_cache(model, rows)))
        stats = policy(batch, wanted)
        assert (stats.cached_tokens == 0) == keeps
        policy_loss(batch, stats, config.loss).loss.backward()
        flats.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    assert (flats[0] - flats[1]).norm() / flats[0].norm() < 1e-5


def test_keys_of_the_pass_without_gradient_are_used_again() -> None:
    training = {"gradient": "local", "mini_batches": 1}
    config = parse_config({"selection": {"keep_fraction": 0.3}, "training": training})
    batch = make_batch()
    results = {}
    for same_weights in (True, False):
        model = tiny_model(tied=True)
        policy = PolicyModule(model, gradient="local", temperature=1.0)
        exact = policy.annotate(batch, max_tokens=2048)
        sampled = batch.with_streams(
            rollout_logprobs_T=exact.logprobs_R, rollout_entropies_T=exact.entropies_R
        )
        optimizer = Optimizer(model, config.optim)
        metrics = train_step(
            policy, optimizer, sampled, config, step=1, same_weights=same_weights
        ).metrics
        results[same_weights] = (metrics, exact.cached_tokens)
    (own, _), (reused, whole) = results[True], results[False]
    assert reused["grad/norm"] == pytest.approx(own["grad/norm"], rel=1e-5)
    assert reused["work/nograd_tokens"] == whole  # the one pass for log-probabilities
    assert own["work/nograd_tokens"] > 0


def test_an_update_makes_keys_void() -> None:
    training = {"gradient": "local", "mini_batches": 2}
    config = parse_config({"selection": {"keep_fraction": 0.3}, "training": training})
    model = tiny_model(tied=True)
    policy = PolicyModule(model, gradient="local", temperature=1.0)
    batch = make_batch()
    whole = policy.annotate(batch, max_tokens=2048, keep_keys=True).cached_tokens
    assert policy.keys is not None
    assert len(policy.keys) == batch.num_sequences
    result = train_step(
        policy, Optimizer(model, config.optim), batch, config, step=1, same_weights=False
    )
    # log-probabilities in one pass, whose keys the first update reads; the second runs its own
    assert whole < result.metrics["work/nograd_tokens"] < 2 * whole
    assert policy.keys == {}


def test_each_predicting_position_runs_once_with_gradient() -> None:
    config = parse_config({"selection": {"keep_fraction": 0.3}})
    batch = prepared(make_batch(), config)
    wanted = needed_rows(batch, config.loss)
    rows = lay_trees(batch, wanted, 512)
    places = set(zip(rows.line_R.tolist(), rows.column_R.tolist(), strict=True))
    policy = PolicyModule(tiny_model(), gradient="local", temperature=1.0)
    policy.row_tokens = 512
    stats = policy(batch, wanted)
    assert stats.body_tokens == len(places)  # one line, so no empty slots
    assert stats.cached_tokens == rows.input_ids_BL.numel()


@pytest.mark.parametrize("batch_sequences", [1, 2, 4, 6])
def test_keys_kept_while_sampling_are_those_of_a_pass_over_the_batch(batch_sequences: int) -> None:
    model = tiny_model(tied=True)
    loaded = LoadedModel(model=model, tokenizer=NumberTokenizer(), eos_ids=(EOS,))
    kept: KeyStore = {-1: SequenceKeys(prompt=(), completion=())}  # of another step
    engine = TransformersEngine(loaded, decoding=PLAIN, batch_sequences=batch_sequences)
    engine.keeper = KeyKeeper(kept, 3)
    prompts = [
        Prompt(problem=Problem(id=str(i), prompt=""), token_ids=tuple(range(5, 8 + 2 * i)))
        for i in range(2)
    ]
    requests = [
        SampleRequest(prompt=p, serial=i, sample=s) for i, p in enumerate(prompts) for s in range(3)
    ]
    settings = SamplingSettings(max_new_tokens=30, temperature=1.0, seed=1, step=1)
    made = engine.sample(requests, settings)
    assert len({len(c.token_ids) for c in made}) > 1  # rows left at different times
    groups = [
        Group(
            prompt=p,
            serial=i,
            rollouts_G=tuple(
                Rollout(completion=c, score=Score(reward=float(n % 2), parts={}))
                for n, c in enumerate(made[3 * i : 3 * i + 3])
            ),
        )
        for i, p in enumerate(prompts)
    ]
    batch = build_batch(groups, advantage="grpo")
    every = torch.ones(batch.num_tokens, dtype=torch.bool)
    rows = lay_trees(batch, every, 64)
    exact = keys_of(rows, batch, fill_cache(model, rows))
    assert kept.keys() == exact.keys() == set(range(6))
    for sequence, keys in kept.items():
        for part in ("prompt", "completion"):
            for got, expected in zip(
                getattr(keys, part), getattr(exact[sequence], part), strict=True
            ):
                for a, b in zip(got, expected, strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    before = dict(kept)
    engine.sample(requests, replace(settings, purpose="evaluate"))
    assert kept == before  # nothing is trained on those
    engine.sample(requests[:1], replace(settings, step=2))
    assert kept.keys() == {0}
