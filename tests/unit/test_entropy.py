"""Entropy and log-probability: by hand, against the float64 definition, and their gradients."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from forkpoint.entropy import (
    entropy_of_logprobs,
    head,
    head_stats,
    logits_stats,
    reference_energy,
    reference_entropy,
    reference_logprob,
)
from forkpoint.entropy.head import HeadShape

INF = math.inf

BLOCKS = [(1, 1), (4, 20), (5, 10_000), (10_000, 7), (10_000, 10_000)]
"""(rows, words) that meet at once: single logits, remainders in both ways, everything."""


def in_blocks(monkeypatch: pytest.MonkeyPatch, rows: int, words: int) -> None:
    """Let the head work on ``rows`` x ``words`` logits at once."""
    monkeypatch.setitem(head.ROWS, "cpu", rows)
    monkeypatch.setitem(head.CHUNK_ELEMENTS, "cpu", rows * words)


def both(logits: list[float], token: int, temperature: float = 1.0) -> tuple[float, float]:
    """(ln p, H) of one row, after checking that definition and float32 way agree on it."""
    logits_RV, token_ids_R = torch.tensor([logits]), torch.tensor([token])
    logprobs_R, entropies_R, _ = logits_stats(logits_RV, token_ids_R, temperature)
    reference = reference_logprob(logits_RV, token_ids_R, temperature)
    assert logprobs_R.item() == pytest.approx(reference.item(), rel=1e-6, abs=1e-6)
    reference = reference_entropy(logits_RV, temperature)
    assert entropies_R.item() == pytest.approx(reference.item(), rel=1e-6, abs=1e-6)
    return logprobs_R.item(), entropies_R.item()


def energy(logits: list[float], token: int, rel: float = 1e-5) -> float:
    """E of one row, after checking that definition and both float32 ways agree on it."""
    logits_RV, token_ids_R = torch.tensor([logits]), torch.tensor([token])
    expected = reference_energy(logits_RV, token_ids_R).item()
    found = logits_stats(logits_RV, token_ids_R, 1.0)[2].item()
    assert found == pytest.approx(expected, rel=rel, abs=0)
    # one hidden state of 1 makes the weights the logits
    weight_VD = logits_RV.T.contiguous()
    head_R = head_stats(torch.ones(1, 1), weight_VD, None, token_ids_R, 1.0)[2]
    assert head_R.item() == pytest.approx(expected, rel=rel, abs=0)
    return found


def random_head(rows: int, vocabulary: int, *, bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states of width 7 and a head whose distributions are far from flat."""
    generator = torch.Generator().manual_seed(rows * 1000 + vocabulary)
    hidden_RD = torch.randn(rows, 7, generator=generator) * 2
    weight_VD = torch.randn(vocabulary, 7, generator=generator)
    bias_V = torch.randn(vocabulary, generator=generator)
    return hidden_RD, weight_VD, bias_V if bias else None


def random_tokens(rows: int, vocabulary: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows + vocabulary)
    return torch.randint(vocabulary, (rows,), generator=generator)


# ---- by hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 151])
def test_uniform_over_n_is_ln_n(n: int) -> None:
    logprob, entropy = both([0.7] * n, token=n - 1)
    assert entropy == pytest.approx(math.log(n), abs=1e-6)
    assert logprob == pytest.approx(-math.log(n), abs=1e-6)


def test_two_points() -> None:
    # p = (1/4, 3/4): H = 1/4 ln 4 + 3/4 ln (4/3) = ln 4 - 3/4 ln 3
    logprob, entropy = both([0.0, math.log(3)], token=1)
    assert entropy == pytest.approx(math.log(4) - 0.75 * math.log(3), rel=1e-6)
    assert logprob == pytest.approx(math.log(0.75), rel=1e-6)


def test_three_points_do_not_depend_on_a_shift_of_all_logits() -> None:
    # p = (1/2, 1/4, 1/4): H = 1/2 ln 2 + 2 * 1/4 ln 4 = 3/2 ln 2
    for shift in (0.0, 64.0, -64.0):
        _, entropy = both([math.log(2) + shift, shift, shift], token=0)
        assert entropy == pytest.approx(1.5 * math.log(2), rel=1e-5)


def test_one_hot_is_exactly_zero() -> None:
    assert both([-INF, 3.0, -INF], token=1) == (0.0, 0.0)


def test_energy_by_hand() -> None:
    # p = (1/2, 1/4, 1/4), the first was drawn: 1/4 + 1/16 + 1/16 = 3/8; the last: 1/4 + 1/16 + 9/16
    logits = [math.log(2), 0.0, 0.0]
    assert energy(logits, 0) == pytest.approx(3 / 8, rel=1e-6)
    assert energy(logits, 2) == pytest.approx(7 / 8, rel=1e-6)
    # and 1 - 2 p + sum p^2 is the same: 1 - 1 + 3/8, 1 - 1/2 + 3/8
    assert energy([0.0] * 4, 1) == pytest.approx(3 / 4, rel=1e-6)


def test_the_energy_of_a_near_certain_word_keeps_its_digits() -> None:
    # p = 1 / (1 + e), e = exp(-12): both differences are e / (1 + e). Float32 knows p to 6e-8, a
    # hundredth of e; 1 - 2 p + sum p^2 would be off by a thousand times what is looked for, 8e-11
    e = math.exp(-12.0)
    assert energy([0.0, -12.0], 0, rel=0.03) == pytest.approx(2 * (e / (1 + e)) ** 2, rel=0.03)
    # the same e for a word that was not to be expected: nearly 2
    assert energy([0.0, -12.0], 1) == pytest.approx(2 / (1 + e) ** 2, rel=1e-6)


def test_the_energy_is_the_squared_gradient_of_ln_p_at_the_softmax() -> None:
    z_RV = torch.randn(9, 31, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    z_RV.requires_grad_()
    ids_R = random_tokens(9, 31)
    z_RV.log_softmax(-1).gather(1, ids_R[:, None]).sum().backward()
    assert z_RV.grad is not None
    expected_R = z_RV.grad.square().sum(-1)
    torch.testing.assert_close(reference_energy(z_RV.detach(), ids_R), expected_R)


def test_forbidden_tokens_add_nothing() -> None:
    # two live tokens of equal logit among five: ln 2, and a forbidden token has ln 0
    logits_RV = torch.tensor([[-INF, 1.0, -INF, 1.0, -INF]] * 2)
    logprobs_R, entropies_R, _ = logits_stats(logits_RV, torch.tensor([1, 0]), 1.0)
    assert logprobs_R.tolist() == pytest.approx([-math.log(2), -INF])
    assert entropies_R.tolist() == pytest.approx([math.log(2)] * 2)
    assert reference_entropy(logits_RV).tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    # z / T = (0, ln 3), so p = (1/4, 3/4) as above
    logprob, entropy = both([0.0, temperature * math.log(3)], token=0, temperature=temperature)
    assert entropy == pytest.approx(math.log(4) - 0.75 * math.log(3), rel=1e-6)
    assert logprob == pytest.approx(-math.log(4), rel=1e-6)


def test_entropy_rises_with_temperature_towards_ln_n() -> None:
    logits_RV = random_tokens(9, 40).float()[None]
    rising = [reference_entropy(logits_RV, t).item() for t in (0.1, 0.5, 1.0, 2.0, 1e6)]
    assert rising == sorted(rising)
    assert rising[-1] == pytest.approx(math.log(9), abs=1e-6)


@pytest.mark.parametrize("scale", [1e4, 1e20, 1e30])
def test_very_large_logits(scale: float) -> None:
    # a gap of ``scale`` leaves one token; equal largest logits leave a fair coin
    assert both([scale, 0.0, -scale], token=0) == (0.0, 0.0)
    assert both([-scale, scale, scale], token=1) == pytest.approx((-math.log(2), math.log(2)))


def test_the_widest_gap_of_float32_is_a_certainty() -> None:
    most = torch.finfo(torch.float32).max
    logprobs_R, entropies_R, _ = logits_stats(
        torch.tensor([[most, -most]] * 2), torch.tensor([0, 1]), 1.0
    )
    assert entropies_R.tolist() == [0.0, 0.0]
    assert logprobs_R.tolist() == [0.0, -INF]  # the gap itself is above the largest float32


@settings(deadline=None)
@given(
    st.lists(
        st.floats(-1e4, 1e4, width=32) | st.floats(-3, 3, width=32) | st.just(-INF),
        min_size=1,
        max_size=40,
    ).filter(lambda logits: max(logits) > -INF)
)
def test_entropy_is_between_zero_and_ln_n(logits: list[float]) -> None:
    _, entropy = both(logits, token=logits.index(max(logits)))
    live = sum(z > -INF for z in logits)
    assert 0.0 <= entropy <= math.log(live) + 1e-5


# ---- against the definition ---------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 1), (1, 2), (13, 61), (7, 509)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_stats_are_the_definition(
    temperature: float, rows: int, vocabulary: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits_RV = (torch.randn(rows, vocabulary, generator=generator) * 4).to(dtype)
    token_ids_R = random_tokens(rows, vocabulary)
    logprobs_R, entropies_R, _ = logits_stats(logits_RV, token_ids_R, temperature)
    assert logprobs_R.dtype == entropies_R.dtype == torch.float32
    expected_R = reference_logprob(logits_RV, token_ids_R, temperature)
    torch.testing.assert_close(logprobs_R.double(), expected_R, rtol=1e-5, atol=1e-5)
    expected_R = reference_entropy(logits_RV, temperature)
    torch.testing.assert_close(entropies_R.double(), expected_R, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 2), (13, 61), (11, 509)])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("bias", [False, True])
def test_head_stats_are_the_definition(
    monkeypatch: pytest.MonkeyPatch,
    temperature: float,
    rows: int,
    vocabulary: int,
    block: tuple[int, int],
    bias: bool,
) -> None:
    in_blocks(monkeypatch, *block)
    hidden_RD, weight_VD, bias_V = random_head(rows, vocabulary, bias=bias)
    token_ids_R = random_tokens(rows, vocabulary)
    logprobs_R, entropies_R, energies_R = head_stats(
        hidden_RD, weight_VD, bias_V, token_ids_R, temperature
    )
    logits_RV = hidden_RD.double() @ weight_VD.double().T
    logits_RV = logits_RV if bias_V is None else logits_RV + bias_V.double()
    expected_R = reference_logprob(logits_RV, token_ids_R, temperature)
    torch.testing.assert_close(logprobs_R.double(), expected_R, rtol=1e-5, atol=2e-5)
    expected_R = reference_entropy(logits_RV, temperature)
    torch.testing.assert_close(entropies_R.double(), expected_R, rtol=1e-4, atol=1e-5)
    expected_R = reference_energy(logits_RV, token_ids_R, temperature)
    torch.testing.assert_close(energies_R.double(), expected_R, rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_bfloat16_head_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, block: tuple[int, int]
) -> None:
    in_blocks(monkeypatch, *block)
    hidden_RD, weight_VD, bias_V = (
        x.bfloat16() for x in random_head(13, 61, bias=True) if x is not None
    )
    token_ids_R = random_tokens(13, 61)
    logprobs_R, entropies_R, _ = head_stats(hidden_RD, weight_VD, bias_V, token_ids_R, 0.9)
    assert logprobs_R.dtype == entropies_R.dtype == torch.float32
    exact_RV = hidden_RD.double() @ weight_VD.double().T + bias_V.double()
    expected_R = reference_logprob(exact_RV, token_ids_R, 0.9)
    torch.testing.assert_close(logprobs_R.double(), expected_R, rtol=1e-5, atol=2e-5)
    expected_R = reference_entropy(exact_RV, 0.9)
    torch.testing.assert_close(entropies_R.double(), expected_R, rtol=1e-4, atol=1e-5)


def test_no_chunk_is_larger_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks(monkeypatch, 8, 20)
    seen: list[tuple[int, ...]] = []
    whole = head._logits

    def spy(*arguments: Any) -> tuple[Tensor, Tensor | None]:
        z, slope = whole(*arguments)
        seen.append(tuple(z.shape))
        return z, slope

    monkeypatch.setattr(head, "_logits", spy)
    hidden_RD, weight_VD, _ = random_head(13, 61, bias=False)
    hidden_RD.requires_grad_()
    logprobs_R, _, _ = head_stats(hidden_RD, weight_VD, None, random_tokens(13, 61), 1.0)
    logprobs_R.sum().backward()
    # at most 8 rows and 8 x 20 logits: 61 = 20 + 20 + 20 + 1 words for 8 rows, then for 5 rows
    # 160 // 5 = 32 words at once; forwards and again backwards
    once = [(8, 20), (8, 20), (8, 20), (8, 1), (5, 32), (5, 29)]
    assert seen == once * 2


@pytest.mark.parametrize("shape", [HeadShape(scale=0.3), HeadShape(softcap=3.0)])
@pytest.mark.parametrize("bias", [False, True])
def test_scaled_and_capped_heads_are_the_definition(
    monkeypatch: pytest.MonkeyPatch, shape: HeadShape, bias: bool
) -> None:
    in_blocks(monkeypatch, 5, 20)
    hidden_RD, weight_VD, bias_V = inputs = leaves(*random_head(13, 61, bias=bias))
    assert hidden_RD is not None
    assert weight_VD is not None
    token_ids_R = random_tokens(13, 61)
    g_R, e_R = torch.linspace(-1, 2, 13), torch.linspace(2, -1, 13)
    outputs = head_stats(hidden_RD, weight_VD, bias_V, token_ids_R, 0.8, shape)
    (g_R @ outputs[0] + e_R @ outputs[1]).backward()

    copies = leaves(*inputs, dtype=torch.float64)
    logits_RV = shape.scale * (copies[0] @ copies[1].T + (0 if bias_V is None else copies[2]))
    if shape.softcap is not None:
        logits_RV = shape.softcap * (logits_RV / shape.softcap).tanh()
    expected = (
        reference_logprob(logits_RV, token_ids_R, 0.8),
        reference_entropy(logits_RV, 0.8),
    )
    for got, exact in zip(outputs[:2], expected, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)
    value = g_R.double() @ expected[0] + e_R.double() @ expected[1]
    exact = torch.autograd.grad(value, [t for t in copies if t is not None])
    for leaf, gradient in zip((t for t in inputs if t is not None), exact, strict=True):
        assert relative_error(leaf.grad, gradient) < 1e-5


# ---- gradients ----------------------------------------------------------------------------------


def leaves(*tensors: Tensor | None, dtype: torch.dtype | None = None) -> list[Tensor | None]:
    """Copies that collect a gradient."""
    return [
        None if t is None else t.detach().to(dtype or t.dtype, copy=True).requires_grad_()
        for t in tensors
    ]


def exact_gradients(
    inputs: tuple[Tensor, Tensor, Tensor | None],
    token_ids_R: Tensor,
    temperature: float,
    pulls: tuple[Tensor, Tensor],
) -> list[Tensor]:
    """Of sum g ln p + sum e H, by autograd through the definition in float64."""
    hidden_RD, weight_VD, bias_V = copies = leaves(*inputs, dtype=torch.float64)
    assert hidden_RD is not None
    assert weight_VD is not None
    logits_RV = hidden_RD @ weight_VD.T
    logits_RV = logits_RV if bias_V is None else logits_RV + bias_V
    value = pulls[0].double() @ reference_logprob(logits_RV, token_ids_R, temperature)
    value = value + pulls[1].double() @ reference_entropy(logits_RV, temperature)
    return list(torch.autograd.grad(value, [t for t in copies if t is not None]))


def relative_error(got: Tensor | None, expected: Tensor) -> float:
    assert got is not None
    return float((got.double() - expected).norm() / expected.norm())


PULLS = {"logprob": (1.0, 0.0), "entropy": (0.0, 1.0), "both": (1.0, 1.0)}


@pytest.mark.parametrize("pull", PULLS)
@pytest.mark.parametrize("temperature", [0.6, 1.3])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_head_gradients_are_those_of_the_definition(
    monkeypatch: pytest.MonkeyPatch,
    pull: str,
    temperature: float,
    block: tuple[int, int],
    bias: bool,
    dtype: torch.dtype,
    bound: float,
) -> None:
    in_blocks(monkeypatch, *block)
    given_inputs = random_head(13, 61, bias=bias)
    inputs = leaves(*given_inputs, dtype=dtype)
    hidden_RD, weight_VD, bias_V = inputs
    assert hidden_RD is not None
    assert weight_VD is not None
    token_ids_R = random_tokens(13, 61)
    g_R, e_R = (scale * torch.linspace(-1, 2, 13) for scale in PULLS[pull])
    outputs = head_stats(hidden_RD, weight_VD, bias_V, token_ids_R, temperature)
    (g_R @ outputs[0] + e_R @ outputs[1]).backward()
    exact = exact_gradients((hidden_RD, weight_VD, bias_V), token_ids_R, temperature, (g_R, e_R))
    for leaf, expected in zip((t for t in inputs if t is not None), exact, strict=True):
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype
        assert relative_error(leaf.grad, expected) < bound


def test_bfloat16_weight_gradient_does_not_stall_over_many_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 1000 equal rows, one at a time: a running sum of 8 bits stops growing near the 256th
    in_blocks(monkeypatch, 1, 5)
    hidden_RD = torch.ones(1, 2).bfloat16()
    weight_VD = torch.zeros(5, 2).bfloat16().requires_grad_()
    many = hidden_RD.expand(1000, 2)
    head_stats(many, weight_VD, None, torch.zeros(1000, dtype=torch.int64), 1.0)[0].sum().backward()
    # p = 1/5 each: d ln p_0 / dz = (4/5, -1/5, -1/5, -1/5, -1/5), times h = (1, 1), 1000 times
    assert weight_VD.grad is not None
    expected = [[800.0] * 2] + [[-200.0] * 2] * 4
    torch.testing.assert_close(weight_VD.grad.float(), torch.tensor(expected), rtol=0.01, atol=0)


def test_frozen_head_still_passes_the_gradient_on() -> None:
    hidden_RD, weight_VD, bias_V = random_head(5, 61, bias=True)
    token_ids_R, pulls = random_tokens(5, 61), (torch.ones(5), torch.ones(5))
    exact = exact_gradients((hidden_RD, weight_VD, bias_V), token_ids_R, 1.0, pulls)
    hidden_RD.requires_grad_()
    logprobs_R, entropies_R, _ = head_stats(hidden_RD, weight_VD, bias_V, token_ids_R, 1.0)
    (logprobs_R + entropies_R).sum().backward()
    assert relative_error(hidden_RD.grad, exact[0]) < 1e-5
    assert weight_VD.grad is None


def test_forbidden_token_takes_no_gradient_and_changes_none() -> None:
    # a bias of -inf must act as if that token were not in the vocabulary at all
    hidden_RD, weight_VD, bias_V = random_head(5, 61, bias=True)
    assert bias_V is not None
    pulls, token_ids_R = (torch.ones(5), torch.ones(5)), random_tokens(5, 60)
    exact = exact_gradients((hidden_RD, weight_VD[:60], bias_V[:60]), token_ids_R, 1.0, pulls)
    bias_V[60] = -INF
    for tensor in (hidden_RD, weight_VD, bias_V):
        tensor.requires_grad_()
    logprobs_R, entropies_R, _ = head_stats(hidden_RD, weight_VD, bias_V, token_ids_R, 1.0)
    (logprobs_R + entropies_R).sum().backward()
    assert weight_VD.grad is not None
    assert bias_V.grad is not None
    assert relative_error(hidden_RD.grad, exact[0]) < 1e-5
    assert relative_error(weight_VD.grad[:60], exact[1]) < 1e-5
    assert relative_error(bias_V.grad[:60], exact[2]) < 1e-5
    assert weight_VD.grad[60].abs().max() == 0
    assert bias_V.grad[60] == 0


def test_no_rows_give_no_numbers_and_a_gradient_of_zero() -> None:
    hidden_RD, weight_VD, bias_V = inputs = leaves(*random_head(0, 61, bias=True))
    assert hidden_RD is not None
    assert weight_VD is not None
    token_ids_R = torch.zeros(0, dtype=torch.int64)
    logprobs_R, entropies_R, _ = head_stats(hidden_RD, weight_VD, bias_V, token_ids_R, 1.0)
    assert logprobs_R.tolist() == entropies_R.tolist() == []
    (logprobs_R.sum() + entropies_R.sum()).backward()
    grads = [t.grad for t in inputs if t is not None and t.grad is not None]
    assert [g.abs().sum().item() for g in grads] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("temperature", [0.6, 1.3])
def test_logits_stats_gradients_are_those_of_the_definition(temperature: float) -> None:
    generator = torch.Generator().manual_seed(2)
    logits_RV = torch.randn(5, 61, generator=generator) * 3
    token_ids_R, pull_R = random_tokens(5, 61), torch.linspace(-1, 2, 5)
    (fast,) = leaves(logits_RV)
    (exact,) = leaves(logits_RV, dtype=torch.float64)
    assert fast is not None
    assert exact is not None
    logprobs_R, entropies_R, _ = logits_stats(fast, token_ids_R, temperature)
    (pull_R @ logprobs_R + pull_R.flip(0) @ entropies_R).backward()
    value = pull_R.double() @ reference_logprob(exact, token_ids_R, temperature)
    value = value + pull_R.flip(0).double() @ reference_entropy(exact, temperature)
    value.backward()
    assert exact.grad is not None
    assert relative_error(fast.grad, exact.grad) < 1e-5


def test_the_definition_itself_passes_gradcheck() -> None:
    # finite differences in float64: independent of any autograd formula
    generator = torch.Generator().manual_seed(3)
    logits_RV = torch.randn(3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    token_ids_R = torch.tensor([0, 6, 3])
    assert gradcheck(lambda z: reference_entropy(z, 0.7), logits_RV)
    assert gradcheck(lambda z: reference_logprob(z, token_ids_R, 0.7), logits_RV)
    assert gradcheck(lambda z: entropy_of_logprobs(z.log_softmax(-1)), logits_RV)


def test_entropy_gradient_by_hand() -> None:
    # dH/dz_v = -p_v (ln p_v + H); for p = (1/4, 3/4) and H = ln 4 - 3/4 ln 3:
    # dH/dz_0 = -1/4 (-ln 4 + ln 4 - 3/4 ln 3) = 3/16 ln 3, and dH/dz_1 is its opposite
    logits_RV = torch.tensor([[0.0, math.log(3)]], requires_grad=True)
    logits_stats(logits_RV, torch.tensor([0]), 1.0)[1].sum().backward()
    expected = 3 / 16 * math.log(3)
    assert logits_RV.grad is not None
    assert logits_RV.grad[0].tolist() == pytest.approx([expected, -expected], rel=1e-5)


@pytest.mark.parametrize("vocabulary", [49_152, 151_936])
def test_wide_vocabularies_lose_no_digits(vocabulary: int) -> None:
    """Torch's log_softmax fails this: 1e-5 nats and more on a CPU, the same way in every row."""
    generator = torch.Generator().manual_seed(3)
    hidden_RD = torch.randn(8, 16, generator=generator)
    weight_VD = torch.randn(vocabulary, 16, generator=generator)
    token_ids_R = random_tokens(8, vocabulary)
    exact_R = reference_logprob(hidden_RD.double() @ weight_VD.double().T, token_ids_R, 1.0)
    from_logits_R, _, _ = logits_stats(hidden_RD @ weight_VD.T, token_ids_R, 1.0)
    from_hidden_R, _, _ = head_stats(hidden_RD, weight_VD, None, token_ids_R, 1.0)
    for found_R in (from_logits_R, from_hidden_R):
        assert (found_R.double() - exact_R).abs().max() < 8e-6
