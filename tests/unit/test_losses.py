"""Surrogates, penalties and denominators by hand, and against plain float64 loops."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from forkpoint.batching import build_batch
from forkpoint.config import parse_config
from forkpoint.config.stages import LossConfig
from forkpoint.losses import DENOMINATORS, KL_ESTIMATORS, SURROGATES, with_coefficients
from forkpoint.losses.batch_loss import needed_rows
from forkpoint.losses.denominators import StepTotals, step_totals
from forkpoint.losses.surrogates import LOG_RATIO_BOUND
from forkpoint.types import FinishReason, TokenBatch
from tests.conftest import make_group

INF = math.inf
LN2 = math.log(2)


def surrogate(
    name: str,
    ratios: Sequence[float],
    advantages: Sequence[float],
    sequences: Sequence[int] | None = None,
    **given: Any,
) -> tuple[list[float], list[float], list[bool]]:
    """Values, gradients by ln pi and clipped flags of tokens whose ln pi_old is -1."""
    old_R = torch.full((len(ratios),), -1.0)
    logprobs_R = (old_R + torch.tensor(ratios).log()).requires_grad_()
    made = SURROGATES[name](
        logprobs_R,
        old_R,
        torch.tensor(advantages),
        torch.tensor(sequences or [0] * len(ratios)),
        LossConfig(**given),
    )
    (gradient_R,) = torch.autograd.grad(made.values_R.sum(), logprobs_R)
    return made.values_R.tolist(), gradient_R.tolist(), made.clipped_R.tolist()


# ---- surrogates ---------------------------------------------------------------------------------


def test_ppo_clip_by_hand() -> None:
    # r = 1.5 and 0.5, the band is 0.8 .. 1.28; d(r A) / d ln pi = r A where the clip is not active
    #   A =  1: min( 1.5,  1.28) =  1.28 clipped     min( 0.5,  0.8) =  0.5 free
    #   A = -2: min(-3.0, -2.56) = -3.0  free        min(-1.0, -1.6) = -1.6 clipped
    values, gradients, clipped = surrogate("ppo_clip", [1.5, 0.5, 1.5, 0.5], [1, 1, -2, -2])
    assert values == pytest.approx([1.28, 0.5, -3.0, -1.6])
    assert gradients == pytest.approx([0, 0.5, -3.0, 0])
    assert clipped == [True, False, False, True]


def test_clip_higher_leaves_more_room_above_than_below() -> None:
    # r = 1.25, A = 2: min(2.5, 2 * 1.28) = 2.5 free, but min(2.5, 2 * 1.2) = 2.4 with equal clips;
    # r = 0.75, A = -2: min(-1.5, -2 * 0.8) = -1.6 clipped either way
    values, gradients, clipped = surrogate("ppo_clip", [1.25, 0.75], [2, -2])
    assert (values, gradients) == (pytest.approx([2.5, -1.6]), pytest.approx([2.5, 0]))
    assert clipped == [False, True]
    values, gradients, clipped = surrogate("ppo_clip", [1.25, 0.75], [2, -2], clip_high=0.2)
    assert (values, gradients) == (pytest.approx([2.4, -1.6]), [0, 0])
    assert clipped == [True, True]


def test_dual_clip_bounds_the_loss_of_bad_tokens_only() -> None:
    # c = 3. A = -2: r = 5 gives -10, below c A = -6: clipped; r = 2.5 gives -5: free;
    # r = 0.5 gives -1.6 (clip). A = 2: r = 5 gives 2.56 (clip), never touched by c
    values, gradients, clipped = surrogate(
        "ppo_clip", [5, 2.5, 0.5, 5], [-2, -2, -2, 2], dual_clip=3.0
    )
    assert values == pytest.approx([-6, -5, -1.6, 2.56])
    assert gradients == pytest.approx([0, -5, 0, 0])
    assert clipped == [True, False, True, True]


def test_reinforce_by_hand() -> None:
    # A ln pi, ln pi = -1 + ln r: 2 (-1 + ln 2), -3 (-1 - ln 2); its gradient is A; never clipped
    values, gradients, clipped = surrogate("reinforce", [2, 0.5], [2, -3])
    assert values == pytest.approx([2 * (LN2 - 1), 3 * (1 + LN2)])
    assert (gradients, clipped) == ([2, -3], [False, False])


def test_gspo_by_hand() -> None:
    # sequence 4: r = 4, 1/2, 1/2: s = exp((2 ln 2 - ln 2 - ln 2) / 3) = 1, though no r is near 1
    # sequence 7: r = 2, 1/2: s = 1 too; sequence 9: r = 2: s = 2, clipped at 1.28 for A = 1
    ratios, sequences = [4, 0.5, 2, 0.5, 0.5, 2], [4, 4, 7, 4, 7, 9]
    values, gradients, clipped = surrogate("gspo", ratios, [3, 3, -1, 3, -1, 1], sequences)
    assert values == pytest.approx([3, 3, -1, 3, -1, 1.28])
    assert gradients == pytest.approx([3, 3, -1, 3, -1, 0])
    assert clipped == [False] * 5 + [True]


def test_gspo_weighs_its_gradient_by_the_sequence_ratio() -> None:
    # s = exp((ln 1.5 + ln 0.96) / 2) = sqrt(1.44) = 1.2 of both tokens; value and gradient s A
    values, gradients, _ = surrogate("gspo", [1.5, 0.96], [-1, -1])
    assert values == pytest.approx([-1.2, -1.2])
    assert gradients == pytest.approx([-1.2, -1.2])


def test_cispo_by_hand() -> None:
    # weight clip(r, 0.8, 1.28) without gradient, times A ln pi with ln pi = -1 + ln r:
    #   r = 2, A = 1:     1.28 (ln 2 - 1), gradient 1.28: clipping takes no gradient away
    #   r = 1/2, A = -2:  0.8 * -2 (-ln 2 - 1), gradient -1.6
    #   r = 1, A = 3:     -3, gradient 3
    values, gradients, clipped = surrogate("cispo", [2, 0.5, 1], [1, -2, 3])
    assert values == pytest.approx([1.28 * (LN2 - 1), 1.6 * (LN2 + 1), -3])
    assert gradients == pytest.approx([1.28, -1.6, 3])
    assert clipped == [True, True, False]


@pytest.mark.parametrize("name", SURROGATES)
def test_gradient_on_policy_is_the_advantage(name: str) -> None:
    _, gradients, clipped = surrogate(name, [1, 1, 1], [1.5, -0.25, 0], [0, 0, 1], dual_clip=3.0)
    assert gradients == [1.5, -0.25, 0]
    assert not any(clipped)


@pytest.mark.parametrize("name", ["ppo_clip", "gspo"])
def test_log_ratio_is_held_within_twenty(name: str) -> None:
    # A = -1, and no clip bounds a high ratio: ln r = 50 and infinity count as 20, which is a
    # constant; ln r = -50 counts as -20, below the band: -0.8
    logprobs_R = torch.tensor([-1.0, -1.0, -1.0, -51.0], requires_grad=True)
    old_R = torch.tensor([-51.0, -INF, -20.0, -1.0])
    made = SURROGATES[name](logprobs_R, old_R, -torch.ones(4), torch.arange(4), LossConfig())
    top = math.exp(LOG_RATIO_BOUND)
    assert made.values_R.tolist() == pytest.approx([-top, -top, -math.exp(19), -0.8])
    (gradient_R,) = torch.autograd.grad(made.values_R.sum(), logprobs_R)
    assert gradient_R.tolist() == pytest.approx([0, 0, -math.exp(19), 0])


def test_the_bound_holds_where_no_clip_does() -> None:
    # cispo without bounds of its own: the weight is r, e^20 and e^-20 at most and at least
    logprobs_R = torch.tensor([-1.0, -1.0, -51.0, -4.0], requires_grad=True)
    old_R = torch.tensor([-51.0, -INF, -1.0, -2.0])
    config = LossConfig(clip_low=1, clip_high=1e12)
    made = SURROGATES["cispo"](logprobs_R, old_R, torch.ones(4), torch.arange(4), config)
    (gradient_R,) = torch.autograd.grad(made.values_R.sum(), logprobs_R)
    top = math.exp(LOG_RATIO_BOUND)
    assert gradient_R.tolist() == pytest.approx([top, top, 1 / top, math.exp(-2)])


# ---- surrogates against float64 -----------------------------------------------------------------


def oracle_surrogate(
    name: str, logp: Tensor, old: float, advantage: float, mean_log_ratio: float, c: LossConfig
) -> tuple[Tensor, bool]:
    """The module's equations for one token as branches on numbers, in float64."""
    if name == "reinforce":
        return advantage * logp, False
    low, high = 1 - c.clip_low, 1 + c.clip_high
    ratio = (logp - old).exp()
    if name == "gspo":
        ratio = math.exp(mean_log_ratio) * (logp - logp.detach()).exp()
    r = ratio.item()
    if name == "cispo":
        return min(max(r, low), high) * advantage * logp, not low <= r <= high
    if advantage > 0 and r > high:
        return torch.tensor(high * advantage) + 0 * logp, True
    if advantage < 0 and r < low:
        return torch.tensor(low * advantage) + 0 * logp, True
    if advantage < 0 and c.dual_clip is not None and r > c.dual_clip:
        return torch.tensor(c.dual_clip * advantage) + 0 * logp, True
    return ratio * advantage, False


@pytest.mark.parametrize("name", SURROGATES)
@settings(deadline=None, max_examples=150)
@given(
    rows=st.lists(
        st.tuples(
            st.floats(-6, 0, width=32),
            st.floats(-6, 0, width=32),
            st.floats(-3, 3, width=32).filter(lambda a: abs(a) > 1e-3),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=6,
    ),
    dual_clip=st.sampled_from([None, 1.5, 10.0]),
)
def test_surrogates_are_their_equations(
    name: str, rows: list[tuple[float, float, float, int]], dual_clip: float | None
) -> None:
    config = LossConfig(dual_clip=dual_clip)
    logp_R, old_R, advantages_R = (torch.tensor([r[i] for r in rows]) for i in range(3))
    logp_R.requires_grad_()
    made = SURROGATES[name](
        logp_R, old_R, advantages_R, torch.tensor([s for *_, s in rows]), config
    )
    (gradient_R,) = torch.autograd.grad(made.values_R.sum(), logp_R)
    for row, (logp, old, advantage, sequence) in enumerate(rows):
        own = [a - b for a, b, _, s in rows if s == sequence]
        mean = sum(own) / len(own)
        log_ratio = mean if name == "gspo" else logp - old
        edges = [1 - config.clip_low, 1 + config.clip_high, *([dual_clip] if dual_clip else [])]
        assume(all(abs(log_ratio - math.log(edge)) > 1e-5 for edge in edges))  # a kink has two
        leaf = torch.tensor(logp, dtype=torch.float64, requires_grad=True)
        value, clipped = oracle_surrogate(name, leaf, old, advantage, mean, config)
        (gradient,) = torch.autograd.grad(value, leaf)
        assert made.values_R[row].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6)
        assert gradient_R[row].item() == pytest.approx(gradient.item(), rel=1e-4, abs=1e-6)
        assert bool(made.clipped_R[row]) is clipped


# ---- KL estimators ------------------------------------------------------------------------------


def test_kl_estimators_by_hand() -> None:
    # d = ln pi_ref - ln pi = ln 2: (ln 2)^2 / 2, 2 - ln 2 - 1; d = -ln 2: 1/2 + ln 2 - 1
    d_R = torch.tensor([LN2, -LN2, 0.0])
    expected = {
        "k2": [LN2**2 / 2, LN2**2 / 2, 0],
        "k3": [1 - LN2, LN2 - 0.5, 0],
    }
    assert KL_ESTIMATORS.keys() == expected.keys()
    for name, values in expected.items():
        assert KL_ESTIMATORS[name](d_R).tolist() == pytest.approx(values, abs=1e-7)


def test_kl_estimators_in_expectation() -> None:
    # Exact expectations over pi of values and of gradients at the logits of pi: k3 has the
    # value of KL(pi, pi_ref), k2 its gradient.
    logits_V = torch.tensor([0.3, -1.0, 1.2, 0.0], dtype=torch.float64, requires_grad=True)
    reference_V = torch.tensor([-0.5, 0.2, 0.9, 0.4], dtype=torch.float64).log_softmax(0)
    logp_V = logits_V.log_softmax(0)
    p_V = logp_V.exp().detach()
    exact = (logp_V.exp() * (logp_V - reference_V)).sum()
    (exact_gradient,) = torch.autograd.grad(exact, logits_V, retain_graph=True)
    values, gradients = {}, {}
    for name, estimator in KL_ESTIMATORS.items():
        mean = (p_V * estimator(reference_V - logp_V)).sum()
        values[name] = mean.item()
        (gradients[name],) = torch.autograd.grad(mean, logits_V, retain_graph=True)
    assert values["k3"] == pytest.approx(exact.item())
    assert values["k2"] != pytest.approx(exact.item(), rel=0.01)
    torch.testing.assert_close(gradients["k2"], exact_gradient)


# ---- denominators -------------------------------------------------------------------------------


def batch_of(lengths: Sequence[int], **streams: Any) -> TokenBatch:
    """Sequences of one group, with streams given as lists."""
    group = make_group(0, [1.0] + [0.0] * (len(lengths) - 1), lengths)
    batch = build_batch([group], advantage="grpo")
    return batch.with_streams(**{name: torch.tensor(v) for name, v in streams.items()})


# Lengths 3, 2, 2; weights 1, 0, 1/2 | 1, 0 | 0, 1/2: their sum is 3 of 7 tokens of N = 3 sequences.
WEIGHTS = [1, 0, 0.5, 1, 0, 0, 0.5]
BY_HAND = {
    "selected": [1 / 3, 0, 1 / 6, 1 / 3, 0, 0, 1 / 6],
    "all": [1 / 7, 0, 1 / 14, 1 / 7, 0, 0, 1 / 14],
    # the step is this mini-batch alone: one update of 7 tokens
    "all_per_update": [1 / 7, 0, 1 / 14, 1 / 7, 0, 0, 1 / 14],
    "sampled_of_step": [1 / 7, 0, 1 / 14, 1 / 7, 0, 0, 1 / 14],
    # 3 * 3 = 9, 3 * 2 = 6, 6
    "sequence": [1 / 9, 0, 1 / 18, 1 / 6, 0, 0, 1 / 12],
    # 3 * 1.5 = 4.5, 3 * 1 = 3, 3 * 0.5 = 1.5
    "sequence_selected": [1 / 4.5, 0, 0.5 / 4.5, 1 / 3, 0, 0, 1 / 3],
    # parts {0, 1} and {2}: w / 2.5 * 2/3, w / 0.5 * 1/3
    "microbatch_selected": [4 / 15, 0, 2 / 15, 4 / 15, 0, 0, 1 / 3],
    # L = 10: 3 * 10
    "constant": [1 / 30, 0, 1 / 60, 1 / 30, 0, 0, 1 / 60],
}


def run_config(denominator: str, **loss: Any) -> Any:
    micro = denominator == "microbatch_selected"
    return parse_config(
        {
            "loss": {"denominator": denominator, **loss},
            "rollout": {"max_new_tokens": 10},
            "selection": {"scope": "microbatch"} if micro else {},
            "training": {"micro_batch_sequences": 2},
        }
    )


@pytest.mark.parametrize("name", DENOMINATORS)
def test_denominators_by_hand(name: str) -> None:
    batch = batch_of([3, 2, 2])
    groups_T = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    out = with_coefficients(batch, torch.tensor(WEIGHTS), groups_T, run_config(name))
    assert out.coefficients_T is not None
    assert out.weights_T is not None
    assert out.coefficients_T.tolist() == pytest.approx(BY_HAND[name])
    assert out.weights_T.tolist() == WEIGHTS
    assert out.penalty_coefficients_T is None


def test_constant_length_can_be_given() -> None:
    # 3 * 4 = 12 instead of 3 * max_new_tokens
    config = run_config("constant", constant_tokens=4)
    groups_T = torch.zeros(7, dtype=torch.int64)
    out = with_coefficients(batch_of([3, 2, 2]), torch.tensor(WEIGHTS), groups_T, config)
    assert out.coefficients_T is not None
    assert out.coefficients_T.tolist() == pytest.approx([w / 12 for w in WEIGHTS])


@pytest.mark.parametrize(("name", "divisor"), [("all_per_update", 12), ("sampled_of_step", 40)])
def test_denominators_of_the_whole_step(name: str, divisor: int) -> None:
    # a step of 36 tokens of the mask and 4 truncated ones in 3 updates, whichever this one is
    totals = StepTotals(mask_tokens=36, sampled_tokens=40, updates=3)
    groups_T, config = torch.zeros(7, dtype=torch.int64), run_config(name)
    batch = batch_of([3, 2, 2])
    out = with_coefficients(batch, torch.tensor(WEIGHTS), groups_T, config, totals)
    assert out.coefficients_T is not None
    assert out.coefficients_T.tolist() == pytest.approx([w / divisor for w in WEIGHTS])


def test_totals_of_a_step() -> None:
    whole = make_group(0, [1.0, 0.0], [2, 2])
    cut = make_group(1, [1.0], [5], finish=FinishReason.LENGTH)
    batch = build_batch([whole, cut], advantage="dr_grpo", truncated="mask")
    assert step_totals(batch, 2) == StepTotals(mask_tokens=4, sampled_tokens=9, updates=2)


def test_a_truncated_sequence_is_a_sequence_with_a_loss_of_zero() -> None:
    # Two sequences of 2 and one truncated of 5 that is masked: N = 3, and 4 tokens of the mask.
    whole = make_group(0, [1.0, 0.0], [2, 2])
    cut = make_group(1, [1.0], [5], finish=FinishReason.LENGTH)
    batch = build_batch([whole, cut], advantage="dr_grpo", truncated="mask")
    weights_T = torch.tensor([1.0, 0, 1, 1, 0, 0, 0, 0, 0])
    groups_T = torch.zeros(9, dtype=torch.int64)
    # of each: the coefficients, and those of penalties on every token of the mask
    expected = {
        "selected": ([1 / 3, 0, 1 / 3, 1 / 3], [1 / 4] * 4),
        "all": ([1 / 4, 0, 1 / 4, 1 / 4], [1 / 4] * 4),
        "all_per_update": ([1 / 4, 0, 1 / 4, 1 / 4], [1 / 4] * 4),
        "sampled_of_step": ([1 / 9, 0, 1 / 9, 1 / 9], [1 / 9] * 4),
        "sequence": ([1 / 6, 0, 1 / 6, 1 / 6], [1 / 6] * 4),
        "sequence_selected": ([1 / 3, 0, 1 / 6, 1 / 6], [1 / 6] * 4),
        "constant": ([1 / 30, 0, 1 / 30, 1 / 30], [1 / 30] * 4),
        # one micro-batch: its own share of the sequences is 1
        "microbatch_selected": ([1 / 3, 0, 1 / 3, 1 / 3], [1 / 4] * 4),
    }
    assert expected.keys() == DENOMINATORS.keys()
    for name, (values, penalties) in expected.items():
        config = run_config(name, entropy_bonus=0.1, penalties_on="all")
        out = with_coefficients(batch, weights_T, groups_T, config)
        assert out.coefficients_T is not None
        assert out.penalty_coefficients_T is not None
        assert out.coefficients_T.tolist() == pytest.approx([*values, 0, 0, 0, 0, 0])
        assert out.penalty_coefficients_T.tolist() == pytest.approx([*penalties, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("name", DENOMINATORS)
def test_nothing_selected_is_a_coefficient_of_zero(name: str) -> None:
    for weights in ([0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]):
        weights_T, groups_T = torch.tensor(weights), torch.tensor([0, 0, 0, 0, 0, 1, 1])
        out = with_coefficients(batch_of([3, 2, 2]), weights_T, groups_T, run_config(name))
        assert out.coefficients_T is not None
        assert out.coefficients_T[1:].tolist() == [0] * 6
        assert (out.coefficients_T[0] > 0) == bool(weights[0])


@pytest.mark.parametrize("penalty", [{"kl_coefficient": 0.1}, {"entropy_bonus": 0.1}])
def test_penalties_go_with_the_selected_tokens_or_with_all(penalty: dict[str, float]) -> None:
    weights_T, groups_T = torch.tensor(WEIGHTS), torch.zeros(7, dtype=torch.int64)
    everything = [1 / 9] * 3 + [1 / 6] * 4  # 3 sequences of 3, 2 and 2
    for where, expected in (("selected", BY_HAND["sequence"]), ("all", everything)):
        config = run_config("sequence", penalties_on=where, **penalty)
        out = with_coefficients(batch_of([3, 2, 2]), weights_T, groups_T, config)
        assert out.penalty_coefficients_T is not None
        assert out.penalty_coefficients_T.tolist() == pytest.approx(expected)


def test_penalties_of_a_mini_batch_that_is_all_masked_are_zero() -> None:
    batch = batch_of([2, 1], mask_T=[False, False, False], old_logprobs_T=[-1.0, -1, -1])
    config = run_config("selected", entropy_bonus=0.1, penalties_on="all")
    groups_T = torch.zeros(3, dtype=torch.int64)
    out = with_coefficients(batch, torch.zeros(3), groups_T, config)
    assert out.penalty_coefficients_T is not None
    assert out.penalty_coefficients_T.tolist() == [0, 0, 0]
    assert not needed_rows(out, config.loss).any()
