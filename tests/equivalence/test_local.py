"""The local gradient is exactly what it says: keys and values of positions that are not live are
constant, but for the first hop to the weights that made them."""

import math
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from forkpoint.batching.tree import TreeRows, lay_trees
from forkpoint.config import parse_config
from forkpoint.entropy.logits import logits_stats
from forkpoint.errors import ModelError
from forkpoint.losses import batch_loss
from forkpoint.losses.batch_loss import needed_rows
from forkpoint.policy import PolicyModule
from forkpoint.policy.attention import dense_mask
from forkpoint.policy.body import enable_checkpointing
from forkpoint.policy.live import LiveSet, live_positions
from forkpoint.policy.watch import pull_of
from forkpoint.training.gradient import against_exact, gradient_of
from forkpoint.training.optimizer import Optimizer
from forkpoint.training.step import train_step
from forkpoint.types import TokenBatch, TokenStats
from tests.conftest import make_batch, tiny_model
from tests.equivalence.families import build
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


def test_a_run_measures_how_near_its_gradient_is_and_goes_on_as_it_would_have() -> None:
    found = {}
    for every in (0, 2):
        training = {"gradient": "local", "mini_batches": 2, "check_gradient_every": every}
        config = parse_config({"selection": {"keep_fraction": 0.3}, "training": training})
        model = tiny_model(tied=True)
        policy = PolicyModule(model, gradient="local", temperature=1.0, live=LiveSet())
        optimizer = Optimizer(model, config.optim)
        metrics = [
            train_step(
                policy, optimizer, make_batch(), config, step=step, same_weights=True
            ).metrics
            for step in (1, 2)
        ]
        found[every] = metrics, flat_weights(model)
    assert torch.equal(found[0][1], found[2][1])
    names = ("grad/cosine_to_exact", "grad/norm_to_exact")
    measured = [[name in metrics for name in names] for metrics in found[2][0]]
    assert measured == [[False, False], [True, True]]
    assert all(name not in metrics for name in names for metrics in found[0][0])
    second = found[2][0][1]
    assert 0.5 < second[names[0]] < 1
    assert second["work/flops"] == found[0][0][1]["work/flops"]


def test_the_measured_cosine_is_that_of_the_two_gradients() -> None:
    config = parse_config({"selection": {"keep_fraction": 0.3}, "training": {"gradient": "local"}})
    batch = prepared(make_batch(), config)
    wanted_T = needed_rows(batch, config.loss)
    exact = gradient(batch, config, [list(range(9))], "sparse", 1.0)[1].double()
    model = tiny_model(tied=True)
    policy = PolicyModule(model, gradient="local", temperature=1.0, live=LiveSet())
    given = (policy, batch, wanted_T, config.loss, config.training)
    for _ in gradient_of(*given):
        pass
    own = flat(model).double()
    measured = against_exact(*given)
    assert torch.equal(flat(model).double(), own)
    assert measured["grad/norm_to_exact"] == pytest.approx(
        float(own.norm() / exact.norm()), rel=1e-5
    )
    cosine = float(own @ exact / own.norm() / exact.norm())
    assert measured["grad/cosine_to_exact"] == pytest.approx(cosine, rel=1e-5)


def test_what_a_model_cannot_is_refused_whatever_the_share() -> None:
    model = build("codegen")
    for fraction in (0.05, 0.35):
        with pytest.raises(ModelError, match=r"training\.live=forks"):
            PolicyModule(model, gradient="local", temperature=1.0, live=LiveSet(fraction=fraction))


def test_checkpointed_layers_are_refused() -> None:
    model = tiny_model()
    enable_checkpointing(model)
    with pytest.raises(ModelError, match="leaves them none"):
        PolicyModule(model, gradient="local", temperature=1.0)


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_first_hop_leaves_the_layers_as_they_were(wrapped: bool) -> None:
    model = tiny_model()
    layers: Any = model.base_model.layers
    if wrapped:
        for layer in layers:
            layer.forward = partial(layer.forward)
    before = [vars(layer).get("forward") for layer in layers]
    policy = PolicyModule(model, gradient="local", temperature=1.0, live=LiveSet())
    batch = make_batch()
    policy(batch, batch.position_T % 3 == 0)
    assert [vars(layer).get("forward") for layer in layers] == before
    assert [forward is not None for forward in before] == [wrapped] * len(layers)
