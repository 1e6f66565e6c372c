"""Drawing a token with a given uniform number: the inverse of the cumulative distribution."""

import math
from fractions import Fraction
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forkpoint.sampling import draw as module
from forkpoint.sampling.draw import draw_tokens

LAST_BELOW_ONE = math.nextafter(1.0, 0.0)


def draw(probabilities: list[float], uniform: float) -> int:
    uniforms_B = torch.tensor([uniform], dtype=torch.float64)
    return int(draw_tokens(torch.tensor([probabilities]), uniforms_B).item())


# F = 0.25, 0.25, 0.75, 1: token 1 has probability 0
@pytest.mark.parametrize(
    ("uniform", "token"),
    [
        (0.0, 0),
        (0.125, 0),
        (math.nextafter(0.25, 0.0), 0),
        (0.25, 2),  # F(0) = 0.25 is not above 0.25, and neither is F(1)
        (0.5, 2),
        (math.nextafter(0.75, 0.0), 2),
        (0.75, 3),
        (LAST_BELOW_ONE, 3),
    ],
)
def test_by_hand(uniform: float, token: int) -> None:
    assert draw([0.25, 0.0, 0.5, 0.25], uniform) == token


@pytest.mark.parametrize(
    ("probabilities", "first", "last"),
    [
        ([0.0, 0.0, 1.0, 0.0], 2, 2),
        ([0.0, 0.5, 0.5, 0.0, 0.0], 1, 2),
        ([1.0], 0, 0),
        ([1e-30, 1.0, 1e-30], 0, 1),  # 1 + 1e-30 is 1: the last token has no width
        ([1.0, *[2**-30] * 4], 0, 4),  # widths that float32 would lose beside 1
        ([0.1] * 10, 0, 9),  # adds up to a little more than 1
        ([0.3, 0.3, 0.3, 0.0], 0, 2),  # adds up to 0.9: drawn in proportion
        ([2.0, 2.0, 0.0], 0, 1),
    ],
)
def test_both_ends(probabilities: list[float], first: int, last: int) -> None:
    assert draw(probabilities, 0.0) == first
    assert draw(probabilities, LAST_BELOW_ONE) == last


@settings(deadline=None, max_examples=300)
@given(
    weights=st.lists(
        st.just(0.0) | st.floats(2**-100, 2**-20, width=32) | st.floats(2**-7, 1, width=32),
        min_size=1,
        max_size=30,
    ).filter(any),
    uniform=st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, LAST_BELOW_ONE]),
    block=st.sampled_from([1, 4, 7, 128]),  # of one token, of some and a rest, of all
)
def test_never_a_token_of_probability_zero(
    weights: list[float], uniform: float, block: int
) -> None:
    p_V = torch.tensor(weights) / torch.tensor(weights).sum()
    with mock.patch.object(module, "BLOCK", block):
        token = draw(p_V.tolist(), uniform)
    assert p_V[token] > 0
    # and it is the one whose stretch of the exact cumulative distribution holds u
    exact = [Fraction(p) for p in p_V.tolist()]
    total, slack = sum(exact), Fraction(1, 10**14)
    below, target = sum(exact[:token]), Fraction(uniform) * sum(exact)
    assert below - slack * total <= target <= below + exact[token] + slack * total


@settings(deadline=None, max_examples=50)
@given(data=st.data(), seed=st.integers(0, 1000), rows=st.integers(1, 6))
def test_a_row_is_drawn_alone(data: st.DataObject, seed: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p_BV = (torch.randn(rows, 17, generator=generator) * 3).softmax(-1)
    uniforms_B = torch.rand(rows, generator=generator, dtype=torch.float64)
    together = draw_tokens(p_BV, uniforms_B)
    order = data.draw(st.permutations(range(rows)))
    assert draw_tokens(p_BV[order], uniforms_B[order]).tolist() == together[order].tolist()
    for row in range(rows):
        assert draw(p_BV[row].tolist(), uniforms_B[row].item()) == together[row]


def test_evenly_spaced_numbers_give_tokens_in_proportion() -> None:
    # 1000 numbers 0.0005, 0.0015, ..: each token gets 1000 p, by at most one more or less
    p_V = torch.tensor([0.1, 0.03, 0.5, 0.002, 0.368])
    uniforms_B = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    counts = draw_tokens(p_V.expand(1000, 5), uniforms_B).bincount(minlength=5)
    assert counts.tolist() == pytest.approx([100, 30, 500, 2, 368], abs=1)


def test_a_wide_vocabulary_is_drawn_in_blocks() -> None:
    # 7 blocks of 128 tokens and one of 104: the same tokens as accumulated in one go
    generator = torch.Generator().manual_seed(5)
    p_BV = (torch.randn(300, 1000, generator=generator) * 2).softmax(-1)
    uniforms_B = torch.rand(300, generator=generator, dtype=torch.float64)
    cumulative_BV = p_BV.cumsum(-1, dtype=torch.float64)
    target_B = uniforms_B * cumulative_BV[:, -1]
    expected_B = (cumulative_BV <= target_B[:, None]).sum(-1)
    assert draw_tokens(p_BV, uniforms_B).tolist() == expected_B.tolist()
    assert set((expected_B // 128).tolist()) == set(range(8))
