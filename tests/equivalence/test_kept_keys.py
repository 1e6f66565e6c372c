"""Keys and values that are kept for the local gradient are those that a pass of its own makes, and
take no more room than they may."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from forkpoint.batching import build_batch
from forkpoint.batching.tree import lay_trees
from forkpoint.config import parse_config
from forkpoint.losses import batch_loss
from forkpoint.losses.batch_loss import needed_rows
from forkpoint.policy import PolicyModule
from forkpoint.policy.keys import KeyStore, keep_keys
from forkpoint.policy.live import LiveSet
from forkpoint.policy.load import LoadedModel
from forkpoint.policy.local import fill_cache
from forkpoint.sampling.base import SampleRequest, SamplingSettings
from forkpoint.sampling.key_keeper import KeyKeeper
from forkpoint.sampling.rows import PLAIN
from forkpoint.sampling.transformers import TransformersEngine
from forkpoint.training.optimizer import Optimizer
from forkpoint.training.step import train_step
from forkpoint.types import Group, Problem, Prompt, Rollout, Score
from tests.conftest import EOS, NumberTokenizer, make_batch, tiny_model
from tests.equivalence.test_gradients import prepared
from tests.equivalence.test_local import flat, flat_weights

KEEPING = LiveSet(first_hop=False)


@pytest.mark.parametrize("kind", ["looked_at", "forks", "random", "all"])
def test_kept_keys_and_values_give_the_same_gradient(kind: Any) -> None:
    config = parse_config({"selection": {"keep_fraction": 0.3}})
    batch = prepared(make_batch(), config)
    wanted = needed_rows(batch, config.loss)
    flats = []
    live = LiveSet(kind=kind, fraction=0.6, first_hop=False)
    for keeps in (False, True):
        model = tiny_model(tied=True)
        policy = PolicyModule(model, gradient="local", temperature=1.0, live=live)
        assert policy.keys == {}
        if keeps:  # of whole sequences, laid out in another way than the wanted tokens will be
            rows = lay_trees(batch, torch.ones_like(wanted), 24)
            keep_keys(policy.keys, rows, batch, fill_cache(model, rows))
        stats = policy(batch, wanted)
        assert (stats.cached_tokens == 0) == keeps
        batch_loss(batch, stats, config.loss).loss.backward()
        flats.append(flat(model))
    assert (flats[0] - flats[1]).norm() / flats[0].norm() < 1e-5


def test_keys_of_the_pass_without_gradient_are_used_again() -> None:
    training = {"gradient": "local", "mini_batches": 1}
    config = parse_config({"selection": {"keep_fraction": 0.3}, "training": training})
    batch = make_batch()
    results = {}
    for same_weights in (True, False):
        model = tiny_model(tied=True)
        policy = PolicyModule(model, gradient="local", temperature=1.0, live=KEEPING)
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
    policy = PolicyModule(model, gradient="local", temperature=1.0, live=KEEPING)
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


def test_keys_for_which_there_is_no_room_are_made_again() -> None:
    config = parse_config({"selection": {"keep_fraction": 0.3}})
    batch = prepared(make_batch(), config)
    wanted_T = needed_rows(batch, config.loss)
    a_token = 4 * 2 * 2 * 2 * 8  # float32, keys and values, 2 layers, 2 heads of 8
    every = [len(c) for c in batch.completions_B]
    prompts = {p.numpy().tobytes(): len(p) for p in batch.prompts_B}
    found = {}
    for name, room in (("all", math.inf), ("some", 48 * a_token / 1e9), ("none", 1e-9)):
        live = LiveSet(first_hop=False, keys_gb=room)
        model = tiny_model(tied=True)
        policy = PolicyModule(model, gradient="local", temperature=1.0, live=live)
        policy.annotate(batch, max_tokens=2048, keep_keys=True)
        assert policy.keys is not None
        # the last token of a completion is predicted and not read
        if name == "all":
            assert policy.keys.bytes == a_token * (sum(every) - 9 + sum(prompts.values()))
        assert held_bytes(policy.keys) == policy.keys.bytes <= 1e9 * room
        run = 0
        for b in range(9):
            micro, own = batch.take([b]), wanted_T[batch.rows_of([b])]
            if own.any():
                stats = policy(micro, own)
                run += stats.cached_tokens > 0
                batch_loss(micro, stats, config.loss).loss.backward()
        found[name] = len(policy.keys), run, flat(model)
    assert (found["all"][0], found["none"][0]) == (9, 0)
    assert 0 < found["some"][0] < 9
    assert 0 == found["all"][1] < found["some"][1] < found["none"][1]
    for name in ("some", "none"):
        gap = (found[name][2] - found["all"][2]).norm()
        assert gap / found["all"][2].norm() < 1e-5


def held_bytes(store: KeyStore) -> int:
    """What the tensors in it keep alive: of a view that is all that it was cut from."""
    layers = [x for keys in store.values() for part in (keys.prompt, keys.completion) for x in part]
    storages = [x.untyped_storage() for pair in layers for x in pair]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_stale_keys_save_the_passes_of_later_updates_and_are_not_exact() -> None:
    found = {}
    for stale in (False, True):
        training = {"gradient": "local", "mini_batches": 2, "first_hop": False}
        settings = {
            "selection": {"keep_fraction": 0.3},
            "training": training | {"stale_keys": stale},
            "optim": {"lr": 0.01},
        }
        config = parse_config(settings)
        live = LiveSet(first_hop=False, stale_keys=stale)
        model = tiny_model(tied=True)
        policy = PolicyModule(model, gradient="local", temperature=1.0, live=live)
        optimizer = Optimizer(model, config.optim)
        metrics = train_step(
            policy, optimizer, make_batch(), config, step=1, same_weights=False
        ).metrics
        assert policy.keys is not None
        found[stale] = metrics["work/nograd_tokens"], len(policy.keys), flat_weights(model)
    assert found[True][0] < found[False][0]
    assert (found[False][1], found[True][1]) == (0, 9)
    assert not torch.equal(found[True][2], found[False][2])


@pytest.mark.parametrize("batch_sequences", [1, 2, 4, 6])
def test_keys_kept_while_sampling_are_those_of_a_pass_over_the_batch(batch_sequences: int) -> None:
    model = tiny_model(tied=True)
    loaded = LoadedModel(model=model, tokenizer=NumberTokenizer(), eos_ids=(EOS,))
    kept = KeyStore()
    kept.keep(-1, (), (), ())  # of another step
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
    exact = KeyStore()
    keep_keys(exact, rows, batch, fill_cache(model, rows))
    assert kept.keys() == exact.keys() == set(range(6))
    for sequence, keys in kept.items():
        for part in ("prompt", "completion"):
            for got, expected in zip(
                getattr(keys, part), getattr(exact[sequence], part), strict=True
            ):
                for a, b in zip(got, expected, strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert held_bytes(kept) == kept.bytes == exact.bytes
    before = dict(kept)
    engine.sample(requests, replace(settings, purpose="evaluate"))
    assert kept == before  # nothing is trained on those
    engine.sample(requests[:1], replace(settings, step=2))
    assert kept.keys() == {0}
    assert held_bytes(kept) == kept.bytes


def test_a_sequence_is_kept_once_and_its_prompt_with_it() -> None:
    store = KeyStore(most_bytes=4 * 2 * 8 * 5)  # float32, 8 numbers a token: 5 tokens
    cache = [(torch.ones(2, 9, 4), torch.ones(2, 9, 4))]

    def first(tokens: int) -> Any:
        return tuple((keys[:, :tokens], values[:, :tokens]) for keys, values in cache)

    store.keep(0, (7, 8), first(2), first(4))  # 6 tokens
    assert (store.bytes, len(store)) == (0, 0)
    store.keep(1, (7, 8), first(2), first(1))
    for _ in range(2):
        store.keep(1, (7, 8), first(2), first(1))
        store.keep(2, (7, 8), first(2), first(2))
        assert held_bytes(store) == store.bytes == 4 * 2 * 8 * 5
    store.keep(3, (7, 8), first(2), first(1))
    assert set(store) == {1, 2}
    store.clear()
    store.keep(4, (7, 8), first(2), first(1))  # the prompt is gone, too
    assert held_bytes(store) == store.bytes == 4 * 2 * 8 * 3
