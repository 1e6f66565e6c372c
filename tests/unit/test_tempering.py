"""Separate decoding temperatures: which one a row gets, and what it becomes (paper, Eq. 5)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.entropy import reference_entropy
from forkpoint.errors import ConfigError
from forkpoint.sampling.base import SamplingSettings, SplitTemperature
from forkpoint.sampling.tempering import split_logprobs

INFINITY = float("inf")


def tempered(
    logits: list[float], entropy: float, *, threshold: float, above: float, below: float
) -> list[float]:
    """p' of one row."""
    split = SplitTemperature(threshold_nats=threshold, above=above, below=below)
    logp_RV = split_logprobs(torch.tensor([logits]), torch.tensor([entropy]), split)
    return logp_RV.exp()[0].tolist()


# z = 0, ln 3: p = 1/4, 3/4 at temperature 1, and p' is in the proportion 1 : 3^(1/T')
@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, [1 / 4, 3 / 4]),
        (0.5, [1 / 10, 9 / 10]),  # 1 : 9
        (2.0, [1 / (1 + math.sqrt(3)), math.sqrt(3) / (1 + math.sqrt(3))]),  # 1 : sqrt 3
        (0.25, [1 / 82, 81 / 82]),  # 1 : 81
        (0.0, [0.0, 1.0]),
    ],
)
@pytest.mark.parametrize("entropy", [0.2, 0.9])
def test_by_hand(temperature: float, expected: list[float], entropy: float) -> None:
    row = [0.0, math.log(3)]
    other = 7.0  # of the part that this row is not in
    above, below = (temperature, other) if entropy > 0.5 else (other, temperature)
    found = tempered(row, entropy, threshold=0.5, above=above, below=below)
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_threshold_itself_is_no_fork() -> None:
    # H = 0.5 is not above 0.5, the next number is
    settings = {"threshold": 0.5, "above": 0.0, "below": 1.0}
    row = [0.0, math.log(3)]
    assert tempered(row, 0.5, **settings) == pytest.approx([1 / 4, 3 / 4])
    above = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)).item()
    assert tempered(row, above, **settings) == [0.0, 1.0]


def test_greedy_is_the_first_of_the_most_likely() -> None:
    settings = {"threshold": 0.5, "above": 1.0, "below": 0.0}
    assert tempered([1.0, 4.0, 4.0, 2.0], 0.1, **settings) == [0.0, 1.0, 0.0, 0.0]
    assert tempered([-INFINITY, -9.0, -INFINITY], 0.1, **settings) == [0.0, 1.0, 0.0]


def test_each_row_has_its_own_temperature() -> None:
    # forks at 1/2: 1 : 9; the rest greedy
    split = SplitTemperature(threshold_nats=0.3, above=0.5, below=0.0)
    logits_RV = torch.tensor([[0.0, math.log(3)]] * 4)
    entropies_R = torch.tensor([0.1, 0.6, 0.3, 2.0])
    found_RV = split_logprobs(logits_RV, entropies_R, split).exp()
    fork, certain = [1 / 10, 9 / 10], [0.0, 1.0]
    torch.testing.assert_close(found_RV, torch.tensor([certain, fork, certain, fork]))


@pytest.mark.parametrize("temperature", [0.001, 0.05, 5.0])
def test_an_impossible_token_stays_impossible(temperature: float) -> None:
    # of logits that are far apart: e^(-1000 / T') and e^(-60000 / T') are 0, or too small to count
    row = [1e3, -INFINITY, -59e3, 0.0]
    found = tempered(row, 1.0, threshold=0.0, above=temperature, below=0.0)
    assert found == pytest.approx([1.0, 0.0, 0.0, 0.0], abs=1e-30)
    assert found[1] == 0.0


@given(
    seed=st.integers(0, 1000),
    threshold=st.floats(0, 2.5),
    above=st.sampled_from([0.0, 0.05, 0.3, 1.0, 5.0]),
    below=st.sampled_from([0.0, 0.05, 0.3, 1.0, 5.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_against_float64(
    seed: int, threshold: float, above: float, below: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_RV = (torch.randn(6, 11, generator=generator) * 3).to(dtype)
    entropies_R = reference_entropy(logits_RV).float()
    split = SplitTemperature(threshold_nats=threshold, above=above, below=below)
    found_RV = split_logprobs(logits_RV, entropies_R, split)
    assert found_RV.dtype == torch.float32
    for logits_V, entropy, found_V in zip(logits_RV, entropies_R, found_RV, strict=True):
        temperature = above if entropy > threshold else below
        if temperature == 0:
            expected_V = torch.zeros(11, dtype=torch.float64)
            expected_V[int(logits_V.float().argmax())] = 1.0
        else:
            expected_V = (logits_V.double() / temperature).softmax(-1)
        torch.testing.assert_close(found_V.double().exp(), expected_V, rtol=2e-5, atol=1e-6)


# ---- settings that cannot be --------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [-1.0, 0.0009, float("nan"), INFINITY])
@pytest.mark.parametrize("part", ["above", "below"])
def test_a_temperature_that_cannot_be(temperature: float, part: str) -> None:
    values = {"above": 1.0, "below": 1.0, part: temperature}
    with pytest.raises(ConfigError, match=r"a temperature of .*; it is 0 \(greedy\) or at least"):
        SplitTemperature(threshold_nats=0.5, **values)


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), INFINITY])
def test_a_threshold_that_cannot_be(threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"a threshold of .* nats; entropies are >= 0"):
        SplitTemperature(threshold_nats=threshold, above=1.0, below=1.0)


def test_the_entropy_is_asked_at_temperature_1() -> None:
    split = SplitTemperature(threshold_nats=0.5, above=1.2, below=0.6)
    with pytest.raises(ConfigError, match=r"the entropy at temperature 1, not 0\.7"):
        SamplingSettings(max_new_tokens=1, temperature=0.7, seed=0, step=0, split=split)
