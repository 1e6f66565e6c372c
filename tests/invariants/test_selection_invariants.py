"""What must not change a selection, whatever the entropies: order, cut, ties."""

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forkpoint.batching import build_batch, split_microbatches
from forkpoint.config.stages import SelectionConfig
from forkpoint.selection import Candidates, scope_groups, select
from forkpoint.types import Selection, TokenBatch
from tests.conftest import make_group

TIED = st.sampled_from([0.0, 0.25, 0.5])
"""Few values: nearly every edge is a tie."""
FREE = st.floats(0, 12, width=32)
FRACTIONS = st.sampled_from([0.05, 0.1, 0.2, 0.25, 0.5, 0.75, 1.0])


@st.composite
def batches(draw: st.DrawFn) -> TokenBatch:
    """1 to 3 groups of 2 or 3 completions; some groups have no advantage and are not in the pool.

    The first group always has one, so the pool is never empty.
    """
    groups = []
    for index, serial in enumerate(draw(st.sets(st.integers(0, 40), min_size=1, max_size=3))):
        entropy = draw(st.sampled_from([TIED, FREE]))
        rows = draw(st.lists(st.lists(entropy, min_size=1, max_size=7), min_size=2, max_size=3))
        alive = index == 0 or draw(st.booleans())
        rewards = [1.0] + [0.0 if alive else 1.0] * (len(rows) - 1)
        groups.append(make_group(serial, rewards, [len(r) for r in rows], entropies=rows))
    return build_batch(groups, advantage="grpo")


def chosen(batch: TokenBatch, scope_T: Tensor | None = None, **given: Any) -> Selection:
    assert batch.rollout_entropies_T is not None
    groups_T = torch.zeros_like(batch.sequence_T) if scope_T is None else scope_T
    config = SelectionConfig(**given)
    energies_T = batch.rollout_entropies_T.cos()  # any numbers
    return select(
        *(batch, batch.rollout_entropies_T, groups_T, config),
        seed=3,
        step=11,
        energies_T=energies_T,
    )


def named(batch: TokenBatch, weights_T: Tensor) -> dict[tuple[int, int], float]:
    """The weight of each token by (sequence id, position): a name that survives reordering."""
    ids_T = batch.sequence_ids_B[batch.sequence_T].tolist()
    names = list(zip(ids_T, batch.position_T.tolist(), strict=True))
    assert len(set(names)) == batch.num_tokens
    return dict(zip(names, weights_T.tolist(), strict=True))


def kept(batch: TokenBatch, **given: Any) -> set[tuple[int, int]]:
    weights = named(batch, chosen(batch, **given).weights_T)
    return {name for name, weight in weights.items() if weight}


def by_its_definition(batch: TokenBatch, keep_fraction: float) -> set[tuple[int, int]]:
    """The k best by (entropy, sequence id, position), with python's sort and exact fractions."""
    assert batch.rollout_entropies_T is not None
    entropies = named(batch, batch.rollout_entropies_T)
    pool = [name for name, inside in named(batch, batch.pool_T).items() if inside]
    pool.sort(key=lambda n: (-entropies[n], *n))
    return set(pool[: math.ceil(Fraction(str(keep_fraction)) * len(pool))])


@settings(deadline=None)
@given(batches(), FRACTIONS)
def test_exactly_k_are_kept_and_they_are_the_first_of_a_total_order(
    batch: TokenBatch, keep_fraction: float
) -> None:
    expected = by_its_definition(batch, keep_fraction)
    assert kept(batch, rule="top", keep_fraction=keep_fraction) == expected
    k = math.ceil(Fraction(str(keep_fraction)) * int(batch.pool_T.sum()))
    for rule in ("top", "random"):
        selection = chosen(batch, rule=rule, keep_fraction=keep_fraction)
        assert selection.kept_tokens == int(selection.weights_T.sum()) == k
        assert not selection.weights_T[~batch.pool_T].any()


RULES: list[dict[str, Any]] = [
    {"rule": "top"},
    {"rule": "top", "ties": "keep"},
    {"rule": "top", "ties": "quantile"},
    {"rule": "bottom"},
    {"rule": "random"},
    {"rule": "threshold", "threshold_nats": 0.25},
    {"rule": "all"},
    {"rule": "random_unbiased"},
    {"rule": "prefix"},
    {"rule": "energy"},
    {"rule": "low_probability"},
    {"rule": "top+prefix"},
    {"rule": "clip_cov", "parameters": {"low": 0.0, "high": 1.0, "share": 0.2}},
    {"rule": "high_covariance"},
    {"rule": "relative_surprisal"},
    {"rule": "stapo", "parameters": {"probability": 0.9, "entropy_quantile": 0.5}},
    {"rule": "not_mastered", "parameters": {"probability": 0.5}},
    {"rule": "entropy_advantage"},
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
@settings(deadline=None, max_examples=40)
@given(data=st.data(), batch=batches(), keep_fraction=FRACTIONS)
def test_same_tokens_for_any_order_of_sequences(
    rule: dict[str, Any], data: st.DataObject, batch: TokenBatch, keep_fraction: float
) -> None:
    order = data.draw(st.permutations(range(batch.num_sequences)))
    whole = kept(batch, **rule, keep_fraction=keep_fraction)
    assert kept(batch.take(order), **rule, keep_fraction=keep_fraction) == whole


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
@settings(deadline=None, max_examples=40)
@given(
    batch=batches(),
    keep_fraction=FRACTIONS,
    max_tokens=st.integers(1, 60),
    sequences=st.none() | st.integers(1, 4),
)
def test_same_tokens_for_any_micro_batch_cut_under_batch_scope(
    rule: dict[str, Any],
    batch: TokenBatch,
    keep_fraction: float,
    max_tokens: int,
    sequences: int | None,
) -> None:
    uncut = named(batch, chosen(batch, **rule, keep_fraction=keep_fraction).weights_T)
    cut = split_microbatches(batch, max_tokens=max_tokens, sequences=sequences)
    groups_T = scope_groups(batch, "batch", cut)
    weights_T = chosen(batch, groups_T, **rule, keep_fraction=keep_fraction).weights_T
    assert _over_parts(batch.with_streams(weights_T=weights_T), cut) == uncut


@settings(deadline=None)
@given(st.data(), batches())
def test_under_microbatch_scope_each_part_selects_as_if_it_were_alone(
    data: st.DataObject, batch: TokenBatch
) -> None:
    cut = split_microbatches(batch, max_tokens=1, sequences=data.draw(st.integers(1, 4)))
    groups_T = scope_groups(batch, "microbatch", cut)
    weights_T = chosen(batch, groups_T, keep_fraction=0.2).weights_T
    for part in cut:
        alone = batch.take(part)
        expected = kept(alone, keep_fraction=0.2) if alone.pool_T.any() else set()
        together = named(alone, batch.with_streams(weights_T=weights_T).take(part).weights_T)
        assert {name for name, weight in together.items() if weight} == expected


@settings(deadline=None)
@given(st.data(), batches())
def test_weights_follow_their_sequence_through_take(data: st.DataObject, batch: TokenBatch) -> None:
    # every token its own weight, so that any misplaced one shows
    weights_T = torch.arange(1, batch.num_tokens + 1, dtype=torch.float32)
    weighed = batch.with_streams(weights_T=weights_T)
    picked = data.draw(st.permutations(range(batch.num_sequences)))
    picked = picked[: data.draw(st.integers(1, batch.num_sequences))]
    names = named(batch, weights_T)
    ids = {int(batch.sequence_ids_B[b]) for b in picked}
    taken = weighed.take(picked)
    assert taken.weights_T is not None
    expected = {name: weight for name, weight in names.items() if name[0] in ids}
    assert named(taken, taken.weights_T) == expected
    assert taken.sequence_ids_B.tolist() == [int(batch.sequence_ids_B[b]) for b in picked]


@settings(deadline=None)
@given(st.integers(1, 9999), st.integers(1, 3000))
def test_number_kept_is_that_of_decimal_arithmetic(ten_thousandths: int, n: int) -> None:
    product = Decimal(ten_thousandths) / 10_000 * n
    streams = {
        "entropies_N": torch.zeros(n),
        "sequence_ids_N": torch.zeros(n, dtype=torch.int64),
        "positions_N": torch.arange(n),
        "advantages_N": torch.ones(n),
        "logprobs_N": torch.zeros(n),
    }
    ceil = Candidates(**streams, keep_fraction=ten_thousandths / 10_000)
    floor = Candidates(**streams, keep_fraction=ten_thousandths / 10_000, rounding="floor")
    assert ceil.num_kept == product.to_integral_value(ROUND_CEILING)
    assert floor.num_kept == max(1, product.to_integral_value(ROUND_FLOOR))


@pytest.mark.parametrize("scope", ["batch", "sequence"])
@settings(deadline=None)
@given(batches(), st.integers(1, 19), st.sampled_from(["order", "keep", "quantile"]))
def test_top_and_bottom_complement_each_other(
    scope: str, batch: TokenBatch, twentieths: int, ties: str
) -> None:
    groups_T = scope_groups(batch, scope, [])
    forks, rest = (
        chosen(batch, groups_T, rule=rule, keep_fraction=fraction, ties=ties).weights_T
        for rule, fraction in (("top", twentieths / 20), ("bottom", (20 - twentieths) / 20))
    )
    assert torch.equal(forks + rest, batch.pool_T.float())


@settings(deadline=None)
@given(batches(), FRACTIONS)
def test_ties_rules_are_nested(batch: TokenBatch, keep_fraction: float) -> None:
    # H >= the k-th value keeps the k of the total order, and further tokens of that value only
    exact = kept(batch, rule="top", keep_fraction=keep_fraction)
    loose = kept(batch, rule="top", keep_fraction=keep_fraction, ties="keep")
    assert batch.rollout_entropies_T is not None
    entropies = named(batch, batch.rollout_entropies_T)
    assert exact <= loose
    edge = min(entropies[name] for name in exact)
    assert {entropies[name] for name in loose - exact} <= {edge}
    (threshold,) = chosen(batch, rule="top", keep_fraction=keep_fraction, ties="keep").thresholds
    assert threshold == edge


def _over_parts(batch: TokenBatch, cut: Sequence[Sequence[int]]) -> dict[tuple[int, int], float]:
    """The weights by name, read from the micro-batches."""
    weights: dict[tuple[int, int], float] = {}
    for part in cut:
        micro = batch.take(part)
        assert micro.weights_T is not None
        weights |= named(micro, micro.weights_T)
    return weights
