"""The local gradient is exactly what it says: keys and values of positions that are not live are
constant, but for the first hop to the weights that made them."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from forkpoint.batching import build_batch
from forkpoint.batching.tree import TreeRows, lay_trees
from forkpoint.config import parse_config
from forkpoint.entropy.logits import logits_stats
from forkpoint.losses import batch_loss
from forkpoint.losses.batch_loss import needed_rows
from forkpoint.policy import PolicyModule
from forkpoint.policy.attention import dense_mask
from forkpoint.policy.keys import KeyStore, SequenceKeys, keep_keys
from forkpoint.policy.live import LiveSet, live_positions
from forkpoint.policy.load import LoadedModel
from forkpoint.policy.local import fill_cache
from forkpoint.policy.watch import pull_of
from forkpoint.sampling.base import SampleRequest, SamplingSettings
from forkpoint.sampling.key_keeper import KeyKeeper
from forkpoint.sampling.rows import PLAIN
from forkpoint.sampling.transformers import TransformersEngine
from forkpoint.training.optimizer import Optimizer
from forkpoint.training.step import train_step
from forkpoint.types import Group, Problem, Prompt, Rollout, Score, TokenBatch, TokenStats
from tests.conftest import EOS, NumberTokenizer, make_batch, tiny_model
from tests.equivalence.test_gradients import gradient, prepared

SEEN: dict[str, Any] = {"live_BL": None, "attentions": [], "leaves": []}
"""What the attention below is told and what it leaves behind."""


def partly_constant(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **more: Any
) -> tuple[Tensor, None]:
    """Attention in which only live positions' keys and values carry gradient to them; those of the
    others are leaves, so that what would flow there can be read."""
    live_BL = SEEN["live_BL"]
    if live_BL is not None:
        leaves = [x.detach().clone().requires_grad_() for x in (key, value)]
        SEEN["leaves"].append(leaves)
        here = live_BL[:, None, :, None]
        key, value = (torch.where(here, x, y) for x, y in zip((key, value), leaves, strict=True))
    groups = module.num_key_value_groups
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    shares = (query @ key.transpose(2, 3) * more["scaling"] + mask).softmax(-1)
    SEEN["attentions"].append(shares.detach())
    return (shares @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("partly_constant", partly_constant)
AttentionMaskInterface.register("partly_constant", eager_mask)


def oracle(
    micro: TokenBatch, wanted_T: Tensor, config: Any, temperature: float, live: LiveSet, width: int
) -> tuple[float, Tensor, Any]:
    """The local gradient by its definition: loss, gradient, and the model that has it."""
    model = tiny_model(tied=True)
    model.set_attn_implementation("partly_constant")
    rows = lay_trees(micro, wanted_T, width)
    arguments = {
        "input_ids": rows.input_ids_BL,
        "position_ids": rows.position_ids_BL,
        "attention_mask": dense_mask(model, rows.visible_BLL()),
        "use_cache": False,
    }
    SEEN.update(live_BL=None, attentions=[], leaves=[])
    with torch.no_grad():
        model.base_model(**arguments)
    live_BL = chosen_by_hand(micro, rows, live)
    SEEN.update(live_BL=live_BL, attentions=[], leaves=[])
    given: list[tuple[Tensor, Any]] = []
    layers = model.base_model.layers
    for layer in layers:
        layer.register_forward_pre_hook(
            lambda _, args, named: given.append((args[0].detach(), named["position_embeddings"])),
            with_kwargs=True,
        )
    hidden_BLD = model.base_model(**arguments).last_hidden_state
    hidden_RD = hidden_BLD[rows.line_R, rows.column_R]
    ids_R = micro.token_ids_T[rows.rows_R]
    found = logits_stats(hidden_RD @ model.lm_head.weight.T, ids_R, temperature)
    stats = TokenStats(rows.rows_R, *found, body_tokens=0)
    loss = batch_loss(micro, stats, config.loss).loss
    loss.backward()
    if live.first_hop:
        for layer, (input_BLD, (cos, sin)), leaves in zip(
            layers, given, SEEN["leaves"], strict=True
        ):
            attention, normed = layer.self_attn, layer.input_layernorm(input_BLD)
            shape = (*normed.shape[:2], -1, attention.head_dim)
            key = attention.k_norm(attention.k_proj(normed).view(shape)).transpose(1, 2)
            key = apply_rotary_pos_emb(key, key, cos, sin)[1]
            value = attention.v_proj(normed).view(shape).transpose(1, 2)
            torch.autograd.backward([key, value], [leaf.grad for leaf in leaves])
    return loss.item(), flat(model), live_BL


def chosen_by_hand(micro: TokenBatch, rows: TreeRows, live: LiveSet) -> Tensor:
    """The live set of each row from whole attention matrices, position by position."""
    attention_BLL = torch.stack(SEEN["attentions"]).sum((0, 2))
    wanted_BL = torch.zeros_like(rows.input_ids_BL, dtype=torch.bool)
    scores_BL = torch.zeros_like(rows.input_ids_BL, dtype=torch.float32)
    energies_T = torch.ones(micro.num_tokens)
    if micro.old_energies_T is not None:
        energies_T = micro.old_energies_T
    for line, column, row in zip(
        rows.line_R.tolist(), rows.column_R.tolist(), rows.rows_R.tolist(), strict=True
    ):
        wanted_BL[line, column] = True
        pull = abs(float(micro.advantages_T[row])) * float(energies_T[row]) ** 0.5
        scores_BL[line] += pull * attention_BLL[line, column]
    if live.kind == "forks":
        return wanted_BL
    chosen_BL = wanted_BL.clone()
    for line in range(len(wanted_BL)):
        real = [c for c, tree in enumerate(rows.tree_BL[line].tolist()) if tree >= 0]
        others = [c for c in real if not wanted_BL[line, c]]
        others.sort(key=lambda c: -float(scores_BL[line, c]))
        room = math.ceil(Fraction(str(live.fraction)) * len(real))
        for column in others[: max(0, room - int(wanted_BL[line].sum()))]:
            chosen_BL[line, column] = True
    return chosen_BL


def flat(model: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def local(
    micro: TokenBatch, wanted_T: Tensor, config: Any, temperature: float, live: LiveSet, width: int
) -> tuple[float, Tensor, int]:
    model = tiny_model(tied=True)
    policy = PolicyModule(model, gradient="local", temperature=temperature, live=live)
    policy.row_tokens = width
    stats = policy(micro, wanted_T)
    output = batch_loss(micro, stats, config.loss)
    output.loss.backward()
    return output.loss.item(), flat(model), stats.body_tokens


def with_energies(batch: TokenBatch) -> TokenBatch:
    generator = torch.Generator().manual_seed(3)
    return batch.with_streams(old_energies_T=torch.rand(batch.num_tokens, generator=generator))


KEEPING = LiveSet(first_hop=False)
CUTS = [[list(range(9))], [[8, 0, 3], [5, 4], [1, 2, 7, 6]], [[b] for b in range(9)]]


@pytest.mark.parametrize("first_hop", [False, True], ids=["cut off", "first hop"])
@pytest.mark.parametrize(
    ("kind", "fraction"),
    [("forks", 0.35), ("looked_at", 0.2), ("looked_at", 0.5), ("looked_at", 0.8)],
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_local_is_the_gradient_with_keys_and_values_of_the_rest_constant(
    kind: Any, fraction: float, first_hop: bool, temperature: float
) -> None:
    config = parse_config({"selection": {"keep_fraction": 0.3}})
    batch = with_energies(prepared(make_batch(), config, temperature))
    live = LiveSet(kind=kind, fraction=fraction, first_hop=first_hop)
    for cut in CUTS:
        total, exact = 0.0, gradient(batch, config, cut, "dense", temperature)
        for sequences in cut:
            micro = batch.take(sequences)
            wanted_T = needed_rows(micro, config.loss)
            if not wanted_T.any():
                continue
            for width in (24, 200):
                given = (micro, wanted_T, config, temperature, live, width)
                value, expected, live_BL = oracle(*given)
                got_value, got, ran = local(*given)
                assert got_value == pytest.approx(value, rel=1e-5, abs=1e-7)
                assert (got - expected).norm() < 1e-5 * expected.norm().clamp(min=1e-3)
                assert ran == len(live_BL) * int(live_BL.sum(1).max())
            total += got_value
        assert total == pytest.approx(exact[0], rel=1e-5, abs=1e-7)  # the loss itself is exact


@pytest.mark.parametrize("first_hop", [False, True])
@pytest.mark.parametrize("live", [{"kind": "all"}, {"fraction": 1.0}])
def test_with_every_position_alive_it_is_the_exact_gradient(
    live: dict[str, Any], first_hop: bool
) -> None:
    config = parse_config({"selection": {"keep_fraction": 0.3}})
    batch = prepared(make_batch(), config)
    whole = [list(range(9))]
    value, exact = gradient(batch, config, whole, "sparse", 1.0)
    wanted_T = needed_rows(batch, config.loss)
    got_value, got, _ = local(
        batch, wanted_T, config, 1.0, LiveSet(**live, first_hop=first_hop), 100
    )
    assert got_value == pytest.approx(value, rel=1e-6)
    assert (got - exact).norm() / exact.norm() < 1e-5


def test_more_live_positions_and_the_first_hop_bring_it_nearer_to_the_exact_one() -> None:
    config = parse_config({"selection": {"keep_fraction": 0.2}})
    batch = prepared(make_batch(groups=8), config)
    wanted_T = needed_rows(batch, config.loss)
    exact = gradient(batch, config, [list(range(24))], "sparse", 1.0)[1]

    def gap(**live: Any) -> float:
        found = local(batch, wanted_T, config, 1.0, LiveSet(**live), 100)[1]
        return float((found - exact).norm() / exact.norm())

    gaps = [gap(fraction=share, first_hop=False) for share in (0.2, 0.4, 0.6, 0.8)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.05
    assert gap(fraction=0.4) < gaps[1]
    assert gaps[1] < gap(kind="random", fraction=0.4, first_hop=False)


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


def test_the_pull_of_a_position_by_hand() -> None:
    """|A| sqrt(E), summed over the tokens it predicts; an energy that nobody knows counts 1."""
    batch = make_batch().take([0, 1])  # one prompt of 3 tokens, completions of 3 and 9
    energies_T = torch.full((12,), 0.25)
    energies_T[3] = torch.nan
    advantages_T = torch.arange(12.0) - 6
    batch = batch.with_streams(old_energies_T=energies_T, advantages_T=advantages_T)
    wanted_T = torch.zeros(12, dtype=torch.bool)
    wanted_T[[0, 2, 3, 5]] = True  # the first of either, the last of the shorter, one more
    rows = lay_trees(batch, wanted_T, 100)
    pull_BL = pull_of(batch, rows)
    # both first tokens are predicted at the prompt's last; then -4 and -1, halved
    assert pull_BL[0, 2] == 6 * 0.5 + 3 * 1
    assert sorted(pull_BL.flatten().tolist())[-3:] == [0.5, 2.0, 6.0]
    assert int((pull_BL != 0).sum()) == 3


def test_random_positions_are_the_same_ones_for_the_same_rows() -> None:
    config = parse_config({"selection": {"keep_fraction": 0.3}})
    batch = prepared(make_batch(), config)
    rows = lay_trees(batch, needed_rows(batch, config.loss), 200)
    live = LiveSet(kind="random", fraction=0.5)
    first, second = live_positions(rows, live), live_positions(rows, live)
    assert torch.equal(first, second)
    assert not torch.equal(
        first, live_positions(rows, LiveSet(kind="looked_at"), torch.rand(first.shape))
    )


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
        assert policy.keys.bytes <= 1e9 * room
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


def flat_weights(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_each_predicting_position_runs_once_with_gradient() -> None:
    config = parse_config({"selection": {"keep_fraction": 0.3}})
    batch = prepared(make_batch(), config)
    wanted = needed_rows(batch, config.loss)
    rows = lay_trees(batch, wanted, 512)
    places = set(zip(rows.line_R.tolist(), rows.column_R.tolist(), strict=True))
    forks = LiveSet(kind="forks")
    policy = PolicyModule(tiny_model(), gradient="local", temperature=1.0, live=forks)
    policy.row_tokens = 512
    stats = policy(batch, wanted)
    assert stats.body_tokens == len(places)  # one line, so no empty slots
    assert stats.cached_tokens == rows.input_ids_BL.numel()


@pytest.mark.parametrize("batch_sequences", [1, 2, 4, 6])
def test_keys_kept_while_sampling_are_those_of_a_pass_over_the_batch(batch_sequences: int) -> None:
    model = tiny_model(tied=True)
    loaded = LoadedModel(model=model, tokenizer=NumberTokenizer(), eos_ids=(EOS,))
    kept = KeyStore()
    kept.keep(-1, SequenceKeys(prompt=(), completion=()))  # of another step
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
    before = dict(kept)
    engine.sample(requests, replace(settings, purpose="evaluate"))
    assert kept == before  # nothing is trained on those
    engine.sample(requests[:1], replace(settings, step=2))
    assert kept.keys() == {0}
