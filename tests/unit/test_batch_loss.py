"""The loss of a micro-batch: by hand on three tokens, and against a loop over tokens in float64."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from forkpoint.batching import build_batch
from forkpoint.config import parse_config
from forkpoint.config.stages import LossConfig, MarkedConfig
from forkpoint.losses import batch_loss, with_coefficients
from forkpoint.losses.batch_loss import needed_rows
from forkpoint.types import LossOutput, TokenBatch, TokenStats
from tests.conftest import make_batch, make_group

INF = math.inf
LN2 = math.log(2)

# One sequence of three tokens with A = 2, ln pi_old = -2, and ratios 3/2, 1, 1/2.
RATIOS = (1.5, 1.0, 0.5)
ENTROPIES = (0.9, 0.1, 0.4)


def three_tokens(coefficients: Sequence[float], **streams: Any) -> TokenBatch:
    batch = build_batch([make_group(0, [1.0], [3])], advantage="grpo")
    given: dict[str, Any] = {
        "advantages_T": [2.0, 2.0, 2.0],
        "old_logprobs_T": [-2.0, -2.0, -2.0],
        "coefficients_T": coefficients,
        **streams,
    }
    return batch.with_streams(**{name: torch.tensor(v) for name, v in given.items()})


def leaves(rows: Sequence[int] = (0, 1, 2)) -> TokenStats:
    """The statistics of some of the three tokens, as leaves of the graph."""
    logprobs = [-2.0 + math.log(RATIOS[r]) for r in rows]
    return TokenStats(
        rows_R=torch.tensor(rows),
        logprobs_R=torch.tensor(logprobs, requires_grad=True),
        entropies_R=torch.tensor([ENTROPIES[r] for r in rows], requires_grad=True),
        energies_R=torch.zeros(len(rows)),
        body_tokens=3,
    )


def gradients(output: LossOutput, stats: TokenStats) -> tuple[list[float], list[float]]:
    """d loss / d ln pi and d loss / dH of each row; 0 where the loss does not read it."""
    made = torch.autograd.grad(
        output.loss,
        [stats.logprobs_R, stats.entropies_R],
        allow_unused=True,
        materialize_grads=True,
    )
    return made[0].tolist(), made[1].tolist()


# ---- by hand ------------------------------------------------------------------------------------


def test_policy_term_and_metrics_by_hand() -> None:
    # c = 1/2, 0, 1/4. Surrogates: min(3, 2.56) = 2.56 clipped, not read, 1/2 * 2 = 1 free.
    # loss = -(1/2 * 2.56 + 1/4 * 1) = -1.53; d loss / d ln pi = 0, 0, -1/4 * 1
    stats = leaves()
    output = batch_loss(three_tokens([0.5, 0.0, 0.25]), stats, LossConfig())
    assert output.loss.item() == pytest.approx(-1.53)
    assert output.shares == {"loss/policy": pytest.approx(-1.53)}
    assert gradients(output, stats) == (pytest.approx([0, 0, -0.25]), [0, 0, 0])
    # of the two tokens kept: one is clipped, ratios 3/2 and 1/2, entropies 0.9 and 0.4
    metrics = {name: (m.sum, m.count) for name, m in output.metrics.items()}
    assert metrics == {
        "loss/clip_fraction_kept": (1.0, 2.0),
        "loss/ratio_mean_kept": (pytest.approx(2.0), 2.0),
        "loss/entropy_mean_kept": (pytest.approx(1.3), 2.0),
    }


def test_rows_that_do_not_count_may_be_left_out() -> None:
    batch = three_tokens([0.5, 0.0, 0.25])
    config = LossConfig(surrogate="cispo", dual_clip=4.0)
    every, few = leaves(), leaves([0, 2])
    whole, part = batch_loss(batch, every, config), batch_loss(batch, few, config)
    assert part.loss.item() == whole.loss.item() != 0
    assert part.metrics == whole.metrics
    logprob_gradient, _ = gradients(whole, every)
    assert gradients(part, few)[0] == [logprob_gradient[0], logprob_gradient[2]]
    assert logprob_gradient[1] == 0


def test_entropy_bonus_by_hand() -> None:
    # p = 1/2, 0, 1/4, alpha = 0.1: the mean is 0.45 + 0.1 = 0.55, the loss falls by 0.055, and
    # d loss / dH = -0.1 p
    batch = three_tokens([0.5, 0.0, 0.25], penalty_coefficients_T=[0.5, 0.0, 0.25])
    stats = leaves()
    output = batch_loss(batch, stats, LossConfig(entropy_bonus=0.1))
    assert output.loss.item() == pytest.approx(-1.53 - 0.055)
    assert output.shares["loss/entropy_bonus"] == pytest.approx(0.55)
    assert gradients(output, stats) == (
        pytest.approx([0, 0, -0.25]),
        pytest.approx([-0.05, 0, -0.025]),
    )


# ln pi_ref = -2 + ln 3, -7, -2, so d = ln pi_ref - ln pi = ln 2, not read, ln 2. p = 1/2, 0, 1/4.
KL_BY_HAND = {
    # (ln 2)^2 / 2 each; -d = -ln 2
    "k2": (0.375 * LN2**2, -LN2),
    # 2 - ln 2 - 1 each; 1 - e^d = -1
    "k3": (0.75 * (1 - LN2), -1.0),
}


@pytest.mark.parametrize("kl", KL_BY_HAND)
def test_kl_by_hand(kl: Any) -> None:
    mean, slope = KL_BY_HAND[kl]
    batch = three_tokens(
        [0.0, 0.0, 0.0],
        penalty_coefficients_T=[0.5, 0.0, 0.25],
        reference_logprobs_T=[-2.0 + math.log(3), -7.0, -2.0],
    )
    stats = leaves()
    output = batch_loss(batch, stats, LossConfig(kl=kl, kl_coefficient=0.2))
    assert output.loss.item() == pytest.approx(0.2 * mean)
    assert output.shares == {"loss/policy": 0.0, "loss/kl": pytest.approx(mean)}
    assert gradients(output, stats) == (
        pytest.approx([0.2 * 0.5 * slope, 0, 0.2 * 0.25 * slope]),
        [0, 0, 0],
    )


def test_marked_tokens_have_a_kl_penalty_of_their_own_or_none() -> None:
    # as above; the first token is marked: 0 (1 - ln 2) / 2 + 0.2 (1 - ln 2) / 4, slopes 0, 0, -0.05
    batch = three_tokens(
        [0.0, 0.0, 0.0],
        penalty_coefficients_T=[0.5, 0.0, 0.25],
        reference_logprobs_T=[-2.0 + math.log(3), -7.0, -2.0],
        marked_T=[True, False, False],
    )
    stats = leaves()
    archer = MarkedConfig(rule="top", kl_coefficient=0.0)
    output = batch_loss(batch, stats, LossConfig(kl_coefficient=0.2, marked=archer))
    assert output.loss.item() == pytest.approx(0.2 * 0.25 * (1 - LN2))
    assert gradients(output, stats)[0] == pytest.approx([0, 0, -0.05])


def test_all_terms_add_up() -> None:
    batch = three_tokens(
        [0.5, 0.0, 0.25],
        penalty_coefficients_T=[1 / 3, 1 / 3, 1 / 3],
        reference_logprobs_T=[-2.0 + math.log(3), -2.0, -2.0],
    )
    output = batch_loss(batch, leaves(), LossConfig(kl_coefficient=0.2, entropy_bonus=0.1))
    # KL: (2 (1 - ln 2) + 0) / 3; H: (0.9 + 0.1 + 0.4) / 3
    kl, entropy = 2 * (1 - LN2) / 3, 1.4 / 3
    assert output.shares == {
        "loss/policy": pytest.approx(-1.53),
        "loss/kl": pytest.approx(kl),
        "loss/entropy_bonus": pytest.approx(entropy),
    }
    assert output.loss.item() == pytest.approx(-1.53 + 0.2 * kl - 0.1 * entropy)


def test_nothing_kept_is_a_loss_of_zero_with_a_gradient_of_zero() -> None:
    stats = leaves()
    output = batch_loss(three_tokens([0.0, 0.0, 0.0]), stats, LossConfig())
    assert output.loss.item() == 0
    assert gradients(output, stats) == ([0, 0, 0], [0, 0, 0])
    assert all((m.sum, m.count) == (0, 0) for m in output.metrics.values())


@pytest.mark.parametrize("surrogate", ["ppo_clip", "reinforce", "cispo"])
@pytest.mark.parametrize(("old", "logprob"), [(-INF, -1.0), (-INF, -500.0), (-3.0, -INF)])
def test_a_row_that_does_not_count_may_be_infinite(
    surrogate: Any, old: float, logprob: float
) -> None:
    # The second row has a ratio of infinity or 0 and a KL of up to infinity: times 0 that is nan.
    batch = three_tokens(
        [0.5, 0.0, 0.25],
        old_logprobs_T=[-2.0, old, -2.0],
        advantages_T=[2.0, -2.0, 2.0],
        penalty_coefficients_T=[0.5, 0.0, 0.25],
        reference_logprobs_T=[-2.0, -1.0, -2.0],
    )
    config = LossConfig(surrogate=surrogate, kl_coefficient=0.2, entropy_bonus=0.1)
    without = batch_loss(batch, leaves([0, 2]), config)
    every = leaves()
    stats = every._replace(
        logprobs_R=torch.tensor([-2 + math.log(1.5), logprob, -2 - LN2], requires_grad=True),
        entropies_R=torch.tensor([0.9, INF, 0.4], requires_grad=True),
    )
    output = batch_loss(batch, stats, config)
    assert output.loss.item() == pytest.approx(without.loss.item())
    assert output.metrics == without.metrics
    for values in gradients(output, stats):
        assert values[1] == 0
        assert all(math.isfinite(v) for v in values)


# ---- which rows it reads ------------------------------------------------------------------------


def two_sequences(coefficients: Sequence[float], penalties: Sequence[float] | None) -> TokenBatch:
    """Lengths 2 and 3."""
    batch = build_batch([make_group(0, [1.0, 0.0], [2, 3])], advantage="grpo")
    return batch.with_streams(
        coefficients_T=torch.tensor(coefficients),
        penalty_coefficients_T=None if penalties is None else torch.tensor(penalties),
    )


def test_needed_rows_are_those_with_a_coefficient() -> None:
    batch = two_sequences([0.0, 0.5, 0.0, 0.0, 0.0], None)
    for surrogate in ("ppo_clip", "reinforce", "cispo"):
        needed_T = needed_rows(batch, LossConfig(surrogate=surrogate))
        assert needed_T.tolist() == [False, True, False, False, False]


def test_gspo_needs_the_whole_of_each_selected_sequence() -> None:
    batch = two_sequences([0.0, 0.5, 0.0, 0.0, 0.0], None)
    needed_T = needed_rows(batch, LossConfig(surrogate="gspo"))
    assert needed_T.tolist() == [True, True, False, False, False]


def test_penalties_need_their_own_rows() -> None:
    batch = two_sequences([0.0, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.1, 0.1])
    assert needed_rows(batch, LossConfig()).tolist() == [False, True, False, True, True]
    gspo = needed_rows(batch, LossConfig(surrogate="gspo"))
    assert gspo.tolist() == [True, True, False, True, True]


# ---- against float64 ----------------------------------------------------------------------------

LOSSES: list[dict[str, Any]] = [
    {},
    {"preset": "grpo"},
    {"preset": "dr_grpo"},
    {"preset": "cispo"},
    {"preset": "gspo", "clip_low": 0.05, "clip_high": 0.05},
    {"surrogate": "reinforce", "denominator": "all"},
    {"dual_clip": 1.5, "denominator": "sequence_selected"},
    {"kl_coefficient": 0.3, "kl": "k2", "entropy_bonus": 0.2},
    {"kl_coefficient": 0.3, "kl": "k2", "penalties_on": "all"},
    {"kl_coefficient": 0.3, "kl": "k3", "penalties_on": "all", "denominator": "sequence"},
    {"marked": {"clip_low": 0.5, "clip_high": 0.6}, "kl_coefficient": 0.3},
    {"marked": {"drift_coefficient": 0.7, "kl_coefficient": 0.1}, "kl_coefficient": 0.3},
    {"preset": "gspo", "marked": {"clip_low": 0.01, "clip_high": 0.01}},
    {"preset": "cispo", "marked": {"clip_high": 0.1}},
    {"preset": "gspo", "marked": {"kl_coefficient": 0.0}, "kl_coefficient": 0.3},
]


def test_marked_tokens_have_their_own_bounds_and_penalties() -> None:
    # r = 3/2, 1, 1/2 and A = 2, coefficients 1; the first and the last are marked
    #   bounds 0.5 and 0.6: min(3, 3.2) = 3 free; the middle one, not marked: 2; min(1, 1) = 1 free
    #   drift 0.1 |ln r|: 0.1 ln 1.5 and 0.1 ln 2, with gradients +0.1 and -0.1
    marked = MarkedConfig(clip_low=0.5, clip_high=0.6, drift_coefficient=0.1)
    batch = three_tokens([1.0, 1.0, 1.0], marked_T=[True, False, True])
    stats = leaves()
    output = batch_loss(batch, stats, LossConfig(marked=marked))
    assert output.loss.item() == pytest.approx(-6 + 0.1 * math.log(1.5) + 0.1 * LN2)
    assert gradients(output, stats)[0] == pytest.approx([-3 + 0.1, -2, -1 - 0.1])
    # not marked, the first would be clipped at 1.28: no gradient
    batch = three_tokens([1.0, 1.0, 1.0], marked_T=[False, False, False])
    stats = leaves()
    output = batch_loss(batch, stats, LossConfig(marked=marked))
    assert gradients(output, stats)[0] == pytest.approx([0, -2, -1])


def test_marked_tokens_have_their_own_kl_coefficient() -> None:
    # ln pi_ref = ln pi + 1 everywhere: k2 = 1/2 each; 0.2 for two tokens, 0.05 for the marked one
    stats = leaves()
    reference = [x + 1 for x in stats.logprobs_R.tolist()]
    batch = three_tokens(
        [1.0, 1.0, 1.0],
        penalty_coefficients_T=[1.0, 1.0, 1.0],
        reference_logprobs_T=reference,
        marked_T=[False, True, False],
    )
    plain = LossConfig(kl="k2", kl_coefficient=0.2)
    with_mark = plain.model_copy(update={"marked": MarkedConfig(kl_coefficient=0.05)})
    without = batch_loss(batch, stats, plain).loss - batch_loss(batch, stats, with_mark).loss
    assert without.item() == pytest.approx((0.2 - 0.05) / 2, rel=1e-5)
    # the metric is the KL itself, whatever it is multiplied by
    assert batch_loss(batch, stats, with_mark).shares["loss/kl"].item() == pytest.approx(1.5)


def oracle_loss(batch: TokenBatch, logp_T: Tensor, entropy_T: Tensor, c: LossConfig) -> Tensor:
    """The equation of ``batch_loss``, a token at a time, everything in float64."""
    assert batch.weights_T is not None
    assert batch.old_logprobs_T is not None
    assert batch.reference_logprobs_T is not None
    old_T, reference_T = batch.old_logprobs_T.double(), batch.reference_logprobs_T.double()
    w, sequence = batch.weights_T.double(), batch.sequence_T
    count = [float((sequence == b).sum()) for b in range(batch.num_sequences)]
    kept = [float(w[sequence == b].sum()) for b in range(batch.num_sequences)]
    total = torch.zeros((), dtype=torch.float64)
    for t in range(batch.num_tokens):
        b = int(sequence[t])
        divisors = {  # of a selected token, and of one if all were selected
            "selected": (float(w.sum()), batch.num_tokens),
            "all": (batch.num_tokens, batch.num_tokens),
            "sequence": (batch.num_sequences * count[b], batch.num_sequences * count[b]),
            "sequence_selected": (batch.num_sequences * kept[b], batch.num_sequences * count[b]),
            "constant": (batch.num_sequences * 160,) * 2,  # rollout.max_new_tokens by default
        }
        divisor, divisor_of_all = divisors[c.denominator]
        coefficient = float(w[t]) / divisor if w[t] else 0.0
        ratio = (logp_T[t] - old_T[t]).exp()
        if c.surrogate == "gspo":
            mean = (logp_T - old_T)[sequence == b].mean().detach()
            ratio = mean.exp() * (logp_T[t] - logp_T[t].detach()).exp()
        a = batch.advantages_T[t].double()
        marked = c.marked if batch.marked_T is not None and batch.marked_T[t] else None
        low, high, beta = c.clip_low, c.clip_high, c.kl_coefficient
        if marked is not None:
            low = low if marked.clip_low is None else marked.clip_low
            high = high if marked.clip_high is None else marked.clip_high
            beta = beta if marked.kl_coefficient is None else marked.kl_coefficient
        banded = ratio.clamp(1 - low, 1 + high)
        surrogate = torch.minimum(ratio * a, banded * a)
        if c.surrogate == "reinforce":
            surrogate = a * logp_T[t]
        if c.surrogate == "cispo":
            surrogate = banded.detach() * a * logp_T[t]
        if c.dual_clip is not None and a < 0:
            surrogate = torch.maximum(surrogate, c.dual_clip * a)
        d = reference_T[t] - logp_T[t]
        kl = {"k2": d * d / 2, "k3": torch.expm1(d) - d}[c.kl]
        penalty = coefficient if c.penalties_on == "selected" else 1 / divisor_of_all
        total = total - coefficient * surrogate
        if marked is not None:
            total = total + coefficient * marked.drift_coefficient * (logp_T[t] - old_T[t]).abs()
        total = total + penalty * (beta * kl - c.entropy_bonus * entropy_T[t])
    return total


@pytest.mark.parametrize("loss", LOSSES, ids=lambda d: "-".join(map(str, d.values())) or "default")
def test_value_and_gradient_are_those_of_the_equation(loss: dict[str, Any]) -> None:
    config = parse_config({"loss": loss})
    generator = torch.Generator().manual_seed(3)
    batch = make_batch()
    old_T, reference_T, logp_T = -3 * torch.rand(3, batch.num_tokens, generator=generator)
    weights_T = torch.rand(batch.num_tokens, generator=generator).round(decimals=1)
    weights_T[torch.rand(batch.num_tokens, generator=generator) < 0.5] = 0.0
    batch = batch.with_streams(old_logprobs_T=old_T, reference_logprobs_T=reference_T)
    if config.loss.marked is not None:
        batch = batch.with_streams(marked_T=torch.rand(batch.num_tokens, generator=generator) < 0.5)
    batch = with_coefficients(batch, weights_T, torch.zeros_like(batch.sequence_T), config)
    logp_T.requires_grad_()
    entropy_T = torch.rand(batch.num_tokens, generator=generator).requires_grad_()
    stats = TokenStats(
        rows_R=torch.arange(batch.num_tokens),
        logprobs_R=logp_T,
        entropies_R=entropy_T,
        energies_R=torch.zeros_like(logp_T),
        body_tokens=0,
    )
    output = batch_loss(batch, stats, config.loss)
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in (logp_T, entropy_T)]
    exact = oracle_loss(batch, exact_leaves[0], exact_leaves[1], config.loss)
    assert output.loss.item() == pytest.approx(exact.item(), rel=1e-5)
    ours = torch.autograd.grad(output.loss, [logp_T, entropy_T], materialize_grads=True)
    theirs = torch.autograd.grad(exact, exact_leaves, materialize_grads=True)
    assert theirs[0].abs().max() > 1e-3
    for mine, oracle in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), oracle, rtol=1e-5, atol=1e-8)
