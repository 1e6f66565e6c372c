"""The value gap: by hand, and unbiased in simulation."""

import math

import numpy as np
import pytest

from forkpoint.analysis.gap import Alternative, Branch, Position, squared_gap, summarise_gaps


def branch(*rewards: float, certain: bool = False) -> Branch:
    return Branch(rewards=tuple(rewards), certain=certain)


def position(
    kind: str,
    kept: Branch,
    *others: tuple[float, Branch],
    prompt_id: str = "p0",
) -> Position:
    """Alternatives as (probability, branch)."""
    return Position(
        prompt_id=prompt_id,
        sample=0,
        position=3,
        kind=kind,
        entropy=0.5,
        token_id=7,
        text="n7",
        kept=kept,
        alternatives=tuple(
            Alternative(token_id=i, text=f"n{i}", logprob=math.log(p), branch=b)
            for i, (p, b) in enumerate(others)
        ),
    )


def test_squared_gap_by_hand() -> None:
    # a: mean 3/4, s^2 = (3 (1/4)^2 + (3/4)^2) / 3 = 1/4, s^2 / n = 1/16
    # b: mean 1/4, the same variance. (1/2)^2 - 1/16 - 1/16 = 1/8
    assert squared_gap(branch(1, 1, 1, 0), branch(0, 0, 0, 1)) == pytest.approx(1 / 8, rel=1e-12)
    # equal means: the noise alone is taken off
    assert squared_gap(branch(1, 0), branch(0, 1)) == pytest.approx(-1 / 2, rel=1e-12)


def test_a_certain_value_has_no_noise() -> None:
    # b: mean 1/2, s^2 = 1/2, n = 2: (1 - 1/2)^2 - 0 - 1/4 = 0
    assert squared_gap(branch(1, certain=True), branch(1, 0)) == pytest.approx(0, abs=1e-15)
    assert squared_gap(branch(1, certain=True), branch(0, certain=True)) == 1.0


def test_how_many_rewards_make_a_measurement() -> None:
    assert not branch().measured
    assert not branch(1.0).measured  # its variance is unknown
    assert branch(1.0, 0.0).measured
    assert branch(1.0, certain=True).measured
    assert not branch(certain=True).measured


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.9, 0.3), (0.05, 0.0)])
def test_the_squared_gap_is_unbiased_and_the_absolute_one_is_not(a: float, b: float) -> None:
    generator = np.random.default_rng(3)
    trials, n_a, n_b = 4000, 4, 7
    squared, absolute = [], []
    for _ in range(trials):
        one = branch(*generator.binomial(1, a, n_a).tolist())
        other = branch(*generator.binomial(1, b, n_b).tolist())
        squared.append(squared_gap(one, other))
        absolute.append(abs(one.value - other.value))
    error = np.std(squared) / math.sqrt(trials)
    assert np.mean(squared) == pytest.approx((a - b) ** 2, abs=4 * error)
    if a == b:  # the naive estimates see a gap where there is none
        noise = a * (1 - a) * (1 / n_a + 1 / n_b)
        assert np.mean(np.square(absolute)) > noise / 2
        assert np.mean(absolute) > 0.2


def test_alternatives_are_weighed_by_their_probability() -> None:
    certain = {value: branch(value, certain=True) for value in (0.0, 0.5, 1.0)}
    found = position("high", certain[1.0], (0.3, certain[0.0]), (0.1, certain[0.5]))
    assert found.weights() == pytest.approx([3 / 4, 1 / 4], rel=1e-12)
    absolute, squared, resampled = found.gaps()
    # 3/4 * 1 + 1/4 * 1/2;  3/4 * 1 + 1/4 * 1/4;  0.3 * 1 + 0.1 * 1/4
    assert absolute == pytest.approx(7 / 8, rel=1e-12)
    assert squared == pytest.approx(13 / 16, rel=1e-12)
    assert resampled == pytest.approx(0.325, rel=1e-12)


def test_impossible_alternatives_are_still_renormalised() -> None:
    # probabilities of e^-800 and e^-801 are 0 in float64, their ratio is not
    a = [
        Alternative(token_id=i, text="", logprob=-800.0 - i, branch=branch(1.0, certain=True))
        for i in range(2)
    ]
    found = Position(
        prompt_id="p",
        sample=0,
        position=0,
        kind="low",
        entropy=0.0,
        token_id=3,
        text="",
        kept=branch(1.0, certain=True),
        alternatives=tuple(a),
    )
    assert found.weights() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e)], rel=1e-12)


def test_summary_of_positions() -> None:
    def certain(kind: str, prompt_id: str, kept: float, other: float) -> Position:
        pair = branch(kept, certain=True), branch(other, certain=True)
        return position(kind, pair[0], (0.5, pair[1]), prompt_id=prompt_id)

    positions = [
        certain("high", "a", 1.0, 0.0),
        certain("high", "a", 1.0, 0.5),
        certain("high", "b", 0.0, 1.0),
        certain("low", "a", 0.5, 0.5),
        certain("low", "b", 1.0, 0.5),
        certain("low", "b", 1.0, 1.0),
    ]
    found = summarise_gaps(positions, seed=0)
    high, low = found.high, found.low
    assert (high.positions, low.positions) == (3, 3)
    # high: gaps 1, 1/2, 1; squares 1, 1/4, 1. low: gaps 0, 1/2, 0; squares 0, 1/4, 0.
    assert high.gap is not None
    assert high.gap.value == pytest.approx(2.5 / 3)
    assert high.squared_gap is not None
    assert high.squared_gap.value == pytest.approx(2.25 / 3)
    assert low.squared_gap is not None
    assert low.squared_gap.value == pytest.approx(0.25 / 3)
    assert high.resampled_squared_gap is not None
    assert high.resampled_squared_gap.value == pytest.approx(2.25 / 6)
    assert found.difference is not None
    assert found.difference.value == pytest.approx(2 / 3)
    assert found.resampled_difference is not None
    assert found.resampled_difference.value == pytest.approx(1 / 3)
    # two prompts: resamples are aa, ab, bb, so the ratios are those of a, of both, of b
    assert (high.squared_gap.low, high.squared_gap.high) == pytest.approx((1.25 / 2, 1.0))
    assert (low.squared_gap.low, low.squared_gap.high) == pytest.approx((0.0, 0.125))
    # paired: a has 1.25/2 - 0, both 2/3, b 1 - 0.125
    assert (found.difference.low, found.difference.high) == pytest.approx((0.625, 0.875))


def test_one_prompt_has_no_interval_and_no_position_no_value() -> None:
    alone = summarise_gaps(
        [position("high", branch(1, certain=True), (0.5, branch(0, certain=True)))], seed=0
    )
    high = alone.high.squared_gap
    assert high is not None
    assert (high.value, high.low, high.high) == (1.0, None, None)
    assert alone.low.squared_gap is None
    assert alone.difference is None
    nothing = summarise_gaps([], seed=0)
    assert nothing.high.positions == 0
    assert nothing.high.squared_gap is None


def test_the_interval_holds_the_true_difference_about_95_times_in_100() -> None:
    # 40 prompts, each with two high positions (V_kept - V_alternative = 0.6 or 0.2 by prompt) and
    # two low ones (no gap): the true difference of squared gaps is (0.36 + 0.04) / 2 = 0.2
    held = 0
    for trial in range(60):
        generator = np.random.default_rng(trial)
        positions = []
        for prompt in range(40):
            gap = 0.6 if generator.random() < 0.5 else 0.2
            for kind, kept, other in [("high", 0.3 + gap, 0.3), ("low", 0.5, 0.5)] * 2:
                a = branch(*generator.binomial(1, kept, 6).tolist())
                b = branch(*generator.binomial(1, other, 6).tolist())
                positions.append(position(kind, a, (0.5, b), prompt_id=str(prompt)))
        difference = summarise_gaps(positions, seed=trial).difference
        assert difference is not None
        assert difference.low is not None
        assert difference.high is not None
        held += difference.low <= 0.2 <= difference.high
    # 57 +- 3 sqrt(60 * 0.95 * 0.05) = 57 +- 5, a little less for a bootstrap of 40
    assert held >= 50
