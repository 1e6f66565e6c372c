"""Every rule by hand, the size of a selection, its scope, its pool, and what is refused."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forkpoint.batching import build_batch
from forkpoint.config.stages import SelectionConfig
from forkpoint.errors import ConfigError, NumericalError, SelectionError
from forkpoint.selection import RULES, Candidates, scope_groups, select
from forkpoint.selection.candidates import linear_quantile
from forkpoint.selection.tokens import select_tokens
from forkpoint.types import FinishReason, Selection, TokenBatch
from tests.conftest import make_group


def candidates(entropies: Sequence[float], keep_fraction: float = 0.5, **given: Any) -> Candidates:
    """Tokens of one sequence, unless ``sequence_ids_N`` and ``positions_N`` say otherwise."""
    n = len(entropies)
    return Candidates(
        entropies_N=torch.tensor(entropies, dtype=torch.float32),
        sequence_ids_N=torch.tensor(given.pop("sequence_ids_N", [7] * n)),
        positions_N=torch.tensor(given.pop("positions_N", list(range(n)))),
        advantages_N=torch.ones(n),
        logprobs_N=-torch.ones(n),
        keep_fraction=keep_fraction,
        **given,
    )


def batch_of(*entropies: Sequence[float]) -> TokenBatch:
    """One sequence per list, of one group with rewards 1, 0, 0, ..: every advantage is not 0."""
    rewards = [1.0] + [0.0] * (len(entropies) - 1)
    lengths = [len(e) for e in entropies]
    group = make_group(0, rewards, lengths, entropies=entropies)
    return build_batch([group], advantage="grpo")


def chosen(batch: TokenBatch, groups_T: Tensor | None = None, **settings: Any) -> Selection:
    """The selection by the sampler's entropies, over the whole batch by default."""
    assert batch.rollout_entropies_T is not None
    groups_T = torch.zeros_like(batch.sequence_T) if groups_T is None else groups_T
    config = SelectionConfig(**settings)
    return select(batch, batch.rollout_entropies_T, groups_T, config, seed=0, step=1)


# ---- how many -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep_fraction", "n", "ceil", "floor"),
    [
        (0.2, 15, 3, 3),  # in binary 0.2 * 15 = 3.0000000000000004, whose ceiling is 4
        (0.2, 16, 4, 3),  # 3.2
        (0.2, 4, 1, 1),  # 0.8: floor keeps one all the same
        (0.1, 30, 3, 3),
        (0.7, 10, 7, 7),
        (0.29, 100, 29, 29),  # in binary 28.999999999999996, whose floor is 28
        (0.00001, 3, 1, 1),
        (1.0, 7, 7, 7),
        (0.2, 0, 0, 0),
    ],
)
def test_number_kept(keep_fraction: float, n: int, ceil: int, floor: int) -> None:
    assert candidates([0.5] * n, keep_fraction).num_kept == ceil
    assert candidates([0.5] * n, keep_fraction, rounding="floor").num_kept == floor


# ---- the rules ----------------------------------------------------------------------------------


def test_top_keeps_the_highest() -> None:
    # k = ceil(0.4 * 5) = 2: 0.9 and 0.7
    weights_N = RULES["top"](candidates([0.1, 0.9, 0.0, 0.7, 0.2], 0.4))
    assert weights_N.tolist() == [0, 1, 0, 1, 0]


def test_bottom_keeps_the_lowest() -> None:
    # the top half has ceil(0.5 * 5) = 3 tokens, 0.9, 0.7 and 0.2: the other two are the bottom
    weights_N = RULES["bottom"](candidates([0.1, 0.9, 0.0, 0.7, 0.2], 0.5))
    assert weights_N.tolist() == [1, 0, 1, 0, 0]


def test_bottom_80_percent_of_seven_is_what_the_top_20_percent_leaves() -> None:
    # ceil(1.4) = 2 forks leave 5; ceil(5.6) = 6 would be one of them again
    values = [0.3, 0.9, 0.1, 0.4, 0.2, 0.8, 0.5]
    assert RULES["top"](candidates(values, 0.2)).tolist() == [0, 1, 0, 0, 0, 1, 0]
    assert RULES["bottom"](candidates(values, 0.8)).tolist() == [1, 0, 1, 1, 1, 0, 1]
    # one token alone is the top's
    assert RULES["bottom"](candidates([0.3], 0.8)).tolist() == [0]
    assert RULES["bottom"](candidates([0.3, 0.9], 1.0)).tolist() == [1, 1]


@given(
    entropies=st.lists(
        st.sampled_from([0.0, 0.25, 0.5]) | st.floats(0, 12, width=32), min_size=1, max_size=40
    ),
    thousandths=st.integers(1, 999),
    ties=st.sampled_from(["order", "keep", "quantile"]),
    rounding=st.sampled_from(["ceil", "floor"]),
)
def test_top_and_bottom_share_no_token_and_are_everything(
    entropies: list[float], thousandths: int, ties: str, rounding: str
) -> None:
    given_: dict[str, Any] = {"ties": ties, "rounding": rounding}
    forks_N = RULES["top"](candidates(entropies, thousandths / 1000, **given_))
    rest_N = RULES["bottom"](candidates(entropies, (1000 - thousandths) / 1000, **given_))
    assert (forks_N + rest_N).tolist() == [1.0] * len(entropies)
    assert set(rest_N.tolist()) <= {0.0, 1.0}


def test_ties_go_by_sequence_id_then_position() -> None:
    # k = ceil(0.5 * 6) = 3. The 0.9 is in; five tokens at 0.4 compete for two places, and
    # the order is (2, 0), (2, 5), (3, 1), (8, 0), (8, 2)
    tied = candidates(
        [0.4, 0.4, 0.9, 0.4, 0.4, 0.4],
        sequence_ids_N=[8, 3, 8, 2, 2, 8],
        positions_N=[2, 1, 1, 5, 0, 0],
    )
    assert RULES["top"](tied).tolist() == [0, 0, 1, 1, 1, 0]
    # the bottom takes them from the other end, so that top and bottom halves never overlap
    assert RULES["bottom"](tied).tolist() == [1, 1, 0, 0, 0, 1]


def test_ties_keep_all_that_reach_the_kth_value() -> None:
    # k = ceil(0.4 * 5) = 2, the second highest value is 0.4, and three tokens have it
    tied = candidates([0.4, 0.9, 0.4, 0.1, 0.4], 0.4, ties="keep")
    assert RULES["top"](tied).tolist() == [1, 1, 1, 0, 1]
    # the top 60 % has k = 3 and the third value is 0.4 as well: 0.1 alone is left
    assert RULES["bottom"](tied).tolist() == [0, 0, 0, 1, 0]


def test_quantile_interpolates_between_neighbours() -> None:
    # the 0.75 quantile of 6 values has rank 0.75 * 5 = 3.75: 0.3 + 0.75 * (0.8 - 0.3) = 0.675,
    # so only 0.8 and 0.9 reach it
    values = [0.9, 0.0, 0.8, 0.1, 0.3, 0.2]
    quarter = candidates(values, 0.25, ties="quantile")
    assert RULES["top"](quarter).tolist() == [1, 0, 1, 0, 0, 0]
    # ceil(0.6 * 6) = 4 tokens by rank, but rank 0.4 * 5 = 2 is the value 0.2 itself: 4 reach it
    assert RULES["top"](candidates(values, 0.6, ties="quantile")).tolist() == [1, 0, 1, 0, 1, 1]
    # rank 0.5 * 5 = 2.5: edge 0.25 keeps 3; from below the edge is the same and keeps the others
    half = candidates(values, 0.5, ties="quantile")
    assert RULES["top"](half).tolist() == [1, 0, 1, 0, 1, 0]
    assert RULES["bottom"](half).tolist() == [0, 1, 0, 1, 0, 1]


def test_quantile_keeps_more_than_the_fraction_when_tied_at_the_edge() -> None:
    # rank 0.75 * 3 = 2.25 lies between two 0.5: all three of them reach it, not one in four
    tied = candidates([0.5, 0.5, 0.1, 0.5], 0.25, ties="quantile")
    assert RULES["top"](tied).tolist() == [1, 1, 0, 1]


def test_threshold_is_strict() -> None:
    # 0.5 and 0.75 are exact in binary: a token at the threshold is not above it
    rule = candidates([0.5, 0.75, 0.25, 0.5], threshold_nats=0.5)
    assert RULES["threshold"](rule).tolist() == [0, 1, 0, 0]


def test_all_keeps_everything() -> None:
    assert RULES["all"](candidates([0.0, 0.5, 0.1], 0.2)).tolist() == [1, 1, 1]


def test_random_keeps_k_and_depends_on_seed_and_step_only() -> None:
    def kept(seed: int, step: int, entropies: Sequence[float]) -> list[float]:
        return RULES["random"](candidates(entropies, 0.3, seed=seed, step=step)).tolist()

    low, high = [0.1] * 40, [float(i) for i in range(40)]
    assert sum(kept(0, 1, low)) == 12  # 0.3 * 40
    assert kept(0, 1, low) == kept(0, 1, high)
    assert kept(0, 1, low) != kept(0, 2, low)
    assert kept(0, 1, low) != kept(1, 1, low)


def test_random_draws_every_token_equally_often() -> None:
    # 8 tokens of two sequences, k = 2: each is kept with probability 1/4 in each of 1500 steps
    steps = 1500
    pairs = {"sequence_ids_N": [4, 4, 4, 9, 9, 9, 9, 9], "positions_N": [0, 1, 5, 0, 1, 2, 3, 4]}
    count_N = torch.zeros(8)
    for step in range(steps):
        count_N += RULES["random"](candidates([0.0] * 8, 0.25, step=step, **pairs))
    deviation = math.sqrt(steps * 0.25 * 0.75)
    assert count_N.sum() == 2 * steps
    assert (count_N - steps / 4).abs().max() < 4.5 * deviation


def test_random_does_not_depend_on_what_else_competes() -> None:
    # a token's draw belongs to (seed, step, sequence, position): with k = n - 1 the one left out
    # is the lowest draw, and it stays the lowest when a competitor that beat it goes away
    names = [(3, 0), (3, 1), (3, 2), (5, 0), (5, 1)]

    def kept(competing: list[tuple[int, int]], keep_fraction: float) -> list[float]:
        ids, positions = zip(*competing, strict=True)
        given: dict[str, Any] = {"sequence_ids_N": ids, "positions_N": positions, "step": 4}
        entropies = [0.0] * len(competing)
        return RULES["random"](candidates(entropies, keep_fraction, **given)).tolist()

    lowest = kept(names, 0.8).index(0.0)
    for gone in set(range(5)) - {lowest}:
        rest = [i for i in range(5) if i != gone]
        expected = [0.0 if i == lowest else 1.0 for i in rest]
        assert kept([names[i] for i in rest], 0.75) == expected


# ---- the quantile -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.floats(0, 12, width=32) | st.sampled_from([0.0, 0.25, 1.5]), min_size=1),
    st.floats(0, 1) | st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0, 1 - 0.2, 1 - 0.1]),
)
def test_linear_quantile_is_torch_quantile_bit_for_bit(values: list[float], q: float) -> None:
    values_N = torch.tensor(values, dtype=torch.float32)
    assert linear_quantile(values_N, q).item() == torch.quantile(values_N, q).item()


def test_linear_quantile_has_no_limit_of_16_million_values() -> None:
    n = 2**24 + 3
    values_N = torch.arange(n - 1, -1, -1, dtype=torch.float32) / n  # a ramp from 1 down to 0
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(values_N, 0.8)
    for q in (0.2, 0.8):
        # the q-quantile of a ramp is q; float32 ranks are 2 apart at most up here
        assert linear_quantile(values_N, q).item() == pytest.approx(q, abs=4 / n)


# ---- the pool -----------------------------------------------------------------------------------


def test_prompt_tokens_have_no_place_among_the_candidates() -> None:
    batch = batch_of([0.3, 0.9], [0.5, 0.1, 0.2])
    assert sum(len(p) for p in batch.prompts_B) == 8
    assert chosen(batch, rule="all").pool_tokens == 5


def test_zero_advantage_tokens_do_not_compete_unless_asked_to() -> None:
    groups = [
        make_group(0, [1.0, 1.0], [2, 2], entropies=[[5.0, 6.0], [7.0, 8.0]]),
        make_group(1, [1.0, 0.0], [2, 2], entropies=[[0.1, 0.4], [0.3, 0.2]]),
    ]
    # of the 4 tokens with a gradient, ceil(0.5 * 4) = 2: 0.4 and 0.3
    selection = chosen(build_batch(groups, advantage="grpo"), keep_fraction=0.5)
    assert selection.weights_T.tolist() == [0, 0, 0, 0, 0, 1, 1, 0]
    assert (selection.pool_tokens, selection.kept_tokens) == (4, 2)
    # of all 8, ceil(0.5 * 8) = 4: dead tokens use up the whole budget
    everyone = build_batch(groups, advantage="grpo", zero_advantage_in_pool=True)
    selection = chosen(everyone, keep_fraction=0.5)
    assert selection.weights_T.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert (selection.pool_tokens, selection.kept_tokens) == (8, 4)


@pytest.mark.parametrize("dead_too", [False, True])
@pytest.mark.parametrize(
    ("truncated", "weights"),
    [("mask", [0, 0, 0, 0, 0, 1, 0, 0]), ("keep", [1, 1, 0, 0, 0, 0, 0, 0])],
)
def test_masked_truncated_completions_never_compete(
    dead_too: bool, truncated: str, weights: list[int]
) -> None:
    # ceil(0.25 * 4) = 1 of those that ended, or ceil(0.25 * 8) = 2 of all
    cut = [[9.0, 8.0], [7.0, 6.0]]
    groups = [
        make_group(0, [1.0, 0.0], [2, 2], entropies=cut, finish=FinishReason.LENGTH),
        make_group(1, [1.0, 0.0], [2, 2], entropies=[[0.1, 0.4], [0.3, 0.2]]),
    ]
    batch = build_batch(
        groups, advantage="grpo", truncated=truncated, zero_advantage_in_pool=dead_too
    )
    assert chosen(batch, keep_fraction=0.25).weights_T.tolist() == weights


def test_padding_of_a_shorter_sequence_does_not_compete() -> None:
    # a rectangle of 2 x 4 would hold 8 places; 5 tokens compete: ceil(0.2 * 5) = 1, not 2
    selection = chosen(batch_of([0.2], [0.1, 0.7, 0.6, 0.3]), keep_fraction=0.2)
    assert selection.weights_T.tolist() == [0, 0, 1, 0, 0]


def test_empty_pool_is_refused() -> None:
    dead = build_batch([make_group(0, [1.0, 1.0], [3, 2])], advantage="grpo")
    with pytest.raises(SelectionError, match="zero advantage"):
        chosen(dead)
    with pytest.raises(SelectionError, match="no token"):
        chosen(build_batch([], advantage="grpo"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_entropies_that_are_not_finite_are_refused_within_the_pool_only(bad: float) -> None:
    with pytest.raises(NumericalError, match="not finite"):
        chosen(batch_of([0.1, bad], [0.2, 0.3]))
    dead = make_group(0, [1.0, 1.0], [1, 1], entropies=[[bad], [bad]])
    alive = make_group(1, [1.0, 0.0], [1, 1], entropies=[[0.5], [0.6]])
    selection = chosen(build_batch([dead, alive], advantage="grpo"), keep_fraction=0.5)
    assert selection.weights_T.tolist() == [0, 0, 0, 1]


# ---- the scope ----------------------------------------------------------------------------------

SCOPED = ([0.9, 0.8, 0.7], [0.6, 0.5], [0.4, 0.3, 0.2, 0.1])
MICROBATCHES = [[1, 2], [0]]
SCOPES = [
    # ceil(0.4 * 9) = 4 of all
    ("batch", [1, 1, 1, 1, 0, 0, 0, 0, 0], [0.6]),
    ("minibatch", [1, 1, 1, 1, 0, 0, 0, 0, 0], [0.6]),
    # the first part has 2 + 4 tokens: ceil(2.4) = 3; the second 3: ceil(1.2) = 2
    ("microbatch", [1, 1, 0, 1, 1, 1, 0, 0, 0], [0.4, 0.8]),
    # ceil(1.2) = 2, ceil(0.8) = 1, ceil(1.6) = 2
    ("sequence", [1, 1, 0, 1, 0, 1, 1, 0, 0], [0.8, 0.6, 0.3]),
]


@pytest.mark.parametrize(("scope", "weights", "thresholds"), SCOPES)
def test_tokens_compete_within_their_scope(
    scope: str, weights: list[int], thresholds: list[float]
) -> None:
    batch = batch_of(*SCOPED)
    groups_T = scope_groups(batch, scope, MICROBATCHES)
    selection = chosen(batch, groups_T, keep_fraction=0.4)
    assert selection.weights_T.tolist() == weights
    assert selection.thresholds == pytest.approx(thresholds)
    assert (selection.pool_tokens, selection.kept_tokens) == (9, sum(weights))


def test_scope_groups_number_the_parts() -> None:
    batch = batch_of(*SCOPED)
    assert scope_groups(batch, "batch", MICROBATCHES).tolist() == [0] * 9
    assert scope_groups(batch, "microbatch", MICROBATCHES).tolist() == [1, 1, 1] + [0] * 6
    assert scope_groups(batch, "sequence", []).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]


def test_a_group_that_keeps_nothing_has_no_threshold() -> None:
    batch = batch_of([0.25, 0.5], [0.75, 1.0])
    groups_T = scope_groups(batch, "sequence", [])
    selection = chosen(batch, groups_T, rule="threshold", threshold_nats=0.5)
    assert selection.weights_T.tolist() == [0, 0, 1, 1]
    assert math.isnan(selection.thresholds[0])
    assert selection.thresholds[1] == 0.75


# ---- rules of the user's ------------------------------------------------------------------------


def by_surprise(given: Candidates) -> Tensor:
    """Weight: entropy for positive advantages, surprise for the others. A legal custom rule."""
    return torch.where(given.advantages_N > 0, given.entropies_N, -given.logprobs_N)


def of_one_sequence(given: Candidates) -> Tensor:
    """Half of a token's weight, for position 1 of sequence 0 only."""
    return 0.5 * ((given.sequence_ids_N == 0) & (given.positions_N == 1)).float()


def spoils_its_input(given: Candidates) -> Tensor:
    given.entropies_N.zero_()
    given.advantages_N.zero_()
    return torch.ones_like(given.entropies_N)


BAD_RULES: dict[str, Callable[[Candidates], Any]] = {
    "one weight too few": lambda given: torch.ones(len(given.entropies_N) - 1),
    "a matrix": lambda given: torch.ones(len(given.entropies_N), 1),
    "a scalar": lambda given: torch.tensor(1.0),
    "negative": lambda given: -torch.ones(len(given.entropies_N)),
    "nan": lambda given: torch.full((len(given.entropies_N),), math.nan),
    "infinite": lambda given: torch.full((len(given.entropies_N),), math.inf),
}


def test_custom_rule_sees_the_streams_of_its_tokens_and_may_weigh_them() -> None:
    batch = batch_of([0.3, 0.9], [0.5, 0.1, 0.2])
    selection = chosen(batch, rule=f"{__name__}:by_surprise")
    expected = [0.3, 0.9, *(-batch.rollout_logprobs_T[2:]).tolist()]
    assert selection.weights_T.tolist() == pytest.approx(expected)
    assert selection.kept_tokens == 5


def test_custom_rule_sees_ids_and_positions() -> None:
    selection = chosen(batch_of([0.3, 0.9], [0.5, 0.1]), rule=f"{__name__}:of_one_sequence")
    assert selection.weights_T.tolist() == [0, 0.5, 0, 0]
    assert (selection.pool_tokens, selection.kept_tokens) == (4, 1)
    assert selection.thresholds == pytest.approx((0.9,))


def test_custom_rule_cannot_change_the_batch() -> None:
    batch = batch_of([0.3, 0.9], [0.5, 0.1])
    before = batch.advantages_T.clone()
    chosen(batch, rule=f"{__name__}:spoils_its_input")
    assert batch.rollout_entropies_T is not None
    assert batch.rollout_entropies_T.tolist() == pytest.approx([0.3, 0.9, 0.5, 0.1])
    assert torch.equal(batch.advantages_T, before)


def test_custom_rule_with_a_graph_of_its_own_stays_outside_the_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scale = torch.tensor(2.0, requires_grad=True)
    monkeypatch.setitem(globals(), "bad_rule", lambda given: scale * given.entropies_N)
    weights_T = chosen(batch_of([0.25], [1.0]), rule=f"{__name__}:bad_rule").weights_T
    assert weights_T.tolist() == [0.5, 2.0]
    assert not weights_T.requires_grad


@pytest.mark.parametrize("fault", BAD_RULES)
def test_custom_rule_that_returns_no_weights_is_refused(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "bad_rule", BAD_RULES[fault])
    with pytest.raises(SelectionError, match="must return 4 finite weights >= 0"):
        chosen(batch_of([0.3, 0.9], [0.5, 0.1]), rule=f"{__name__}:bad_rule")


@pytest.mark.parametrize("returned", [None, "all"])
def test_custom_rule_that_returns_no_numbers_is_refused(
    returned: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "bad_rule", lambda given: returned)
    with pytest.raises(SelectionError, match="must return 4 finite weights >= 0"):
        chosen(batch_of([0.3, 0.9], [0.5, 0.1]), rule=f"{__name__}:bad_rule")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("topp", "neither a known rule"),
        ("no.such.module:rule", "cannot import"),
        (f"{__name__}:by_suprise", "did you mean .*by_surprise"),
    ],
)
def test_rule_that_is_not_there_is_a_fault_of_the_configuration(rule: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        chosen(batch_of([0.3, 0.9], [0.5, 0.1]), rule=rule)
    assert "selection.rule" in str(caught.value)


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    """A group in this process: bfloat16 passes of other tests may have made the first one."""
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    group = dist.new_group([0], backend="gloo")
    yield group
    dist.destroy_process_group(None if ours else group)


def test_a_process_group_of_one_is_one_process(group_of_one: dist.ProcessGroup) -> None:
    entropies = torch.tensor([[0.1, 0.9, 0.5], [0.5, 0.0, 0.3]])
    kept = select_tokens(entropies, keep_fraction=0.5, group=group_of_one)
    assert kept.tolist() == [[False, True, True], [True, False, False]]
