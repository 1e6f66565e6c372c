"""The controls and the rules of other papers, by hand; what a rule may be called and given."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from forkpoint.config import parse_config
from forkpoint.config.stages import SelectionConfig
from forkpoint.errors import ConfigError, NumericalError, SelectionError
from forkpoint.selection import RULES, Candidates, select
from forkpoint.selection.names import BY_PROBABILITY, reads_fraction
from forkpoint.selection.rules import check_rules, rules_of
from forkpoint.selection.scopes import fraction_at, weigh
from forkpoint.training.annotate import source_of
from tests.conftest import make_batch


def candidates(
    *,
    p: Sequence[float],
    entropies: Sequence[float] | None = None,
    advantages: Sequence[float] | None = None,
    energies: Sequence[float] | None = None,
    **given: Any,
) -> Candidates:
    """Tokens with these probabilities; of one sequence, unless told otherwise."""
    n = len(p)
    return Candidates(
        entropies_N=torch.tensor(entropies or [0.0] * n),
        sequence_ids_N=torch.tensor(given.pop("sequence_ids", [0] * n)),
        positions_N=torch.tensor(given.pop("positions", list(range(n)))),
        advantages_N=torch.tensor(advantages or [1.0] * n),
        logprobs_N=torch.tensor(p).log(),
        energies_N=None if energies is None else torch.tensor(energies),
        keep_fraction=given.pop("keep_fraction", 0.5),
        **given,
    )


def weights(rule: str, found: Candidates, **parameters: float) -> list[float]:
    return weigh(found, SelectionConfig(rule=rule, parameters=parameters)).tolist()


# ---- controls -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["all", "clip_cov", "stapo", "entropy_advantage"])
def test_a_moving_fraction_that_nothing_reads_is_refused(rule: str) -> None:
    moving = {"keep_fraction_start": 0.9, "keep_fraction_steps": 4}
    with pytest.raises(ConfigError, match=f"rule = '{rule}' keeps no fraction that could change"):
        check_rules(parse_config({"selection": {"rule": rule, **moving}}))
    check_rules(parse_config({"selection": {"rule": f"{rule}+prefix", **moving}}))


def test_random_unbiased_weighs_by_one_over_the_chance_to_be_drawn() -> None:
    # k = ceil(0.25 * 10) = 3 of 10: each of them has the weight 10 / 3
    found = candidates(p=[0.5] * 10, keep_fraction=0.25, step=3)
    unbiased = weights("random_unbiased", found)
    assert [w > 0 for w in unbiased] == [w > 0 for w in weights("random", found)]
    assert sorted(unbiased)[-3:] == pytest.approx([10 / 3] * 3)
    assert sum(w > 0 for w in unbiased) == 3


def test_random_unbiased_is_the_sum_over_all_tokens_in_expectation() -> None:
    # values 0..9 have the sum 45; over 3000 steps the mean of weighted sums has a standard error of
    # (10 / 3) sqrt(3 * 8.25 * 7 / 9 / 3000) = 0.27
    values_N = torch.arange(10.0)
    total = 0.0
    for step in range(3000):
        found = candidates(p=[0.5] * 10, keep_fraction=0.3, step=step)
        total += float(torch.tensor(weights("random_unbiased", found)) @ values_N)
    assert total / 3000 == pytest.approx(45, abs=4 * 0.27)


def test_prefix_takes_what_stands_first_and_shares_by_sequence_id() -> None:
    # k = ceil(0.5 * 5) = 3: both tokens at 0, and of the two at 1 that of the lower sequence id
    found = candidates(
        p=[0.5] * 5, sequence_ids=[9, 9, 9, 4, 4], positions=[0, 1, 2, 0, 1], keep_fraction=0.5
    )
    assert weights("prefix", found) == [1, 0, 0, 1, 1]


def test_energy_takes_the_largest_gradients() -> None:
    found = candidates(p=[0.5] * 4, energies=[0.1, 2.0, 0.5, 0.0])
    assert weights("energy", found) == [0, 1, 1, 0]
    with pytest.raises(SelectionError, match="needs the energies"):
        weights("energy", candidates(p=[0.5] * 4))


def test_low_probability_takes_the_rarest_words() -> None:
    assert weights("low_probability", candidates(p=[0.9, 0.1, 0.5, 0.05])) == [0, 1, 0, 1]


# ---- other papers -------------------------------------------------------------------------------


def test_clip_cov_leaves_out_a_few_of_those_in_the_band() -> None:
    # ln p = -3, -1, -1, -3 with mean -2, A = -2, 2, 2, -2 with mean 0: cov = 2, 2, 2, 2
    probabilities = [math.exp(-3), math.exp(-1), math.exp(-1), math.exp(-3)]
    found = candidates(p=probabilities, advantages=[-2.0, 2.0, 2.0, -2.0])
    assert sum(weights("clip_cov", found)) == 3  # max(1, floor(2e-4 * 4)) = 1 is left out
    assert sum(weights("clip_cov", found, share=0.5)) == 2
    assert weights("clip_cov", found, low=2.5) == [1, 1, 1, 1]  # none is in the band
    # A = 2, 2, -2, -2: cov = -2, 2, 2, -2, so only the two in the middle can be left out
    found = candidates(p=[math.exp(-3), math.exp(-1), math.exp(-3), math.exp(-1)])
    mixed = replace(found, advantages_N=torch.tensor([2.0, 2.0, -2.0, -2.0]))
    assert weights("clip_cov", mixed, share=1.0) == [1, 0, 0, 1]


def test_high_covariance_takes_what_makes_the_entropy_fall_fastest() -> None:
    # ln p = -3, -1, -1, -3 and A = 2, 4, -2, -4 about means -2 and 0: cov = -2, 4, -2, 4
    probabilities = [math.exp(-3), math.exp(-1), math.exp(-1), math.exp(-3)]
    found = candidates(p=probabilities, advantages=[2.0, 4.0, -2.0, -4.0])
    assert weights("high_covariance", found) == [0, 1, 0, 1]


def test_clip_cov_draws_evenly_and_anew_each_step() -> None:
    probabilities = [math.exp(-3), math.exp(-1), math.exp(-1), math.exp(-3)]
    out = torch.zeros(4)
    for step in range(800):
        found = candidates(p=probabilities, advantages=[-2.0, 2.0, 2.0, -2.0], step=step)
        out += 1 - torch.tensor(weights("clip_cov", found))
    assert out.sum() == 800
    assert (out - 200).abs().max() < 4.5 * math.sqrt(800 * 3 / 16)


def test_relative_surprisal_keeps_a_band() -> None:
    # -ln p / H: ln 2 / ln 2 = 1; ln 10 / 0.5 = 4.6; ln(1/0.9) / 1 = 0.105; ln 2 / 0.35 = 1.98
    found = candidates(p=[0.5, 0.1, 0.9, 0.5], entropies=[math.log(2), 0.5, 1.0, 0.35])
    assert weights("relative_surprisal", found) == [1, 0, 0, 1]
    assert weights("relative_surprisal", found, low=0.1, high=3.0) == [1, 0, 1, 1]
    # a certain word: 0 / 0 counts as not surprising
    assert weights("relative_surprisal", candidates(p=[1.0], entropies=[0.0])) == [0]


def test_stapo_leaves_out_rare_words_of_right_answers_where_the_policy_was_sure() -> None:
    # the 0.5 quantile of 0.1, 0.2, 0.3, 0.4 is 0.25
    found = candidates(
        p=[0.001, 0.001, 0.5, 0.001],
        entropies=[0.1, 0.2, 0.3, 0.4],
        advantages=[1.0, -1.0, 1.0, 1.0],
    )
    assert weights("stapo", found, entropy_quantile=0.5) == [0, 1, 1, 1]
    # its own 0.2 quantile, 0.16, still lies above 0.1; a smaller probability is asked for below
    assert weights("stapo", found) == [0, 1, 1, 1]
    assert weights("stapo", found, probability=0.0005) == [1, 1, 1, 1]


def test_not_mastered_leaves_out_what_is_near_certain_and_right() -> None:
    found = candidates(p=[0.995, 0.995, 0.98, 1.0], advantages=[0.5, -0.5, 0.5, 2.0])
    assert weights("not_mastered", found) == [0, 1, 1, 0]


def test_entropy_advantage_is_the_papers_advantage() -> None:
    # A' = A + min(0.4 H, |A| / 2): 1 + min(0.4, 0.5) = 1.4; 1 + min(0.8, 0.5) = 1.5;
    # -1 + 0.4 = -0.6; -1 + 0.5 = -0.5; 0 stays 0, its weight does not matter
    advantages = [1.0, 1.0, -1.0, -1.0, 0.0]
    found = candidates(p=[0.5] * 5, entropies=[1.0, 2.0, 1.0, 2.0, 1.0], advantages=advantages)
    given = weights("entropy_advantage", found)
    shaped = [w * a for w, a in zip(given, advantages, strict=True)]
    assert shaped == pytest.approx([1.4, 1.5, -0.6, -0.5, 0.0])
    assert min(given) > 0  # no sign flips
    # alpha 0.1, kappa 4: 1 + min(0.1, 0.25), 1 + min(0.2, 0.25)
    given = weights("entropy_advantage", found, alpha=0.1, kappa=4.0)
    assert given[:2] == pytest.approx([1.1, 1.2])


# ---- unions, parameters, schedules --------------------------------------------------------------


def test_a_union_gives_the_largest_weight() -> None:
    # k = 1 of 3: the highest entropy is the last, the prefix the first
    found = candidates(p=[0.5] * 3, entropies=[0.1, 0.2, 0.3], keep_fraction=0.3)
    assert weights("top+prefix", found) == [1, 0, 1]
    # k = 1 of 3 with weight 3: the drawn one is 3 whatever else keeps it
    drawn = weights("random_unbiased", found)
    union = weights("top+random_unbiased+prefix", found)
    assert union == [max(a, b) for a, b in zip(drawn, [1, 0, 1], strict=True)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rule": "tip"}, "'tip' is neither a known rule"),
        ({"rule": "tops"}, "did you mean 'top'"),
        ({"rule": "top+tip"}, "rule = 'top.tip': 'tip' is neither"),
        ({"rule": "clip_cov", "parameters": {"lower": 1}}, "has low, high, share"),
        ({"rule": "top", "parameters": {"low": 1}}, "it has none"),
        ({"rule": "top+clip_cov", "parameters": {"low": 1}}, "not by a union"),
        ({"rule": "stapo", "parameters": {"probability": 0}}, "needs 0 < probability"),
        ({"rule": "stapo", "parameters": {"entropy_quantile": 20}}, "entropy_quantile <= 1"),
        ({"rule": "not_mastered", "parameters": {"probability": 0.0}}, "needs 0 < probability"),
        ({"rule": "entropy_advantage", "parameters": {"kappa": 0}}, "kappa > 1"),
        ({"rule": "clip_cov", "parameters": {"share": -1}}, "0 <= share"),
        ({"rule": "relative_surprisal", "parameters": {"low": 3}}, "low < high"),
    ],
)
def test_rules_and_parameters_that_are_not_there(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rules_of(SelectionConfig(**given))


def test_a_fraction_goes_to_its_end_in_equal_parts() -> None:
    config = SelectionConfig(keep_fraction=0.2, keep_fraction_start=1.0, keep_fraction_steps=5)
    found = [fraction_at(config, step) for step in range(1, 8)]
    assert found == [1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2]  # as written in decimals
    assert fraction_at(SelectionConfig(), 1) == 0.2
    with pytest.raises(ConfigError, match="belong together"):
        parse_config({"selection": {"keep_fraction_start": 0.5}})


@pytest.mark.parametrize("value", ["0.1", True, math.nan, [1]])
def test_parameters_are_numbers(value: Any) -> None:
    with pytest.raises(ConfigError):
        parse_config({"selection": {"rule": "clip_cov", "parameters": {"low": value}}})


def test_the_threshold_belongs_to_unions_as_well() -> None:
    found = candidates(p=[0.5] * 3, entropies=[0.1, 0.6, 0.9], threshold_nats=0.5)
    assert weights("threshold+prefix", found) == [1, 1, 1]
    parse_config({"selection": {"rule": "threshold+prefix", "threshold_nats": 0.5}})
    with pytest.raises(ConfigError, match="needs selection"):
        parse_config({"selection": {"rule": "top+threshold"}})
    with pytest.raises(ConfigError, match="use 'top'"):
        parse_config({"loss": {"marked": {"rule": "threshold"}}})


def test_two_rules_of_a_step_do_not_share_their_draws() -> None:
    found = candidates(p=[0.5] * 200, keep_fraction=0.5)
    one, other = (
        weights("random", replace(found, draws=draws)) for draws in ("random rule", "marking rule")
    )
    both = sum(a * b for a, b in zip(one, other, strict=True))
    assert 30 <= both <= 70  # 50 of the 100 by chance, +- 4 deviations of 3.5; all 100 if shared


def test_probabilities_that_are_not_known_are_not_guessed() -> None:
    batch = make_batch()
    assert batch.rollout_entropies_T is not None
    unknown = batch.rollout_logprobs_T.clone()
    unknown[batch.pool_T.nonzero()[0]] = math.nan
    groups_T = torch.zeros_like(batch.sequence_T)

    def chosen(rule: str, logprobs_T: torch.Tensor) -> int:
        config = SelectionConfig(rule=rule)
        kept = select(
            *(batch, batch.rollout_entropies_T, groups_T, config),  # type: ignore[arg-type]
            seed=0,
            step=1,
            logprobs_T=logprobs_T,
        )
        return kept.kept_tokens

    assert chosen("top", unknown)
    for rule in BY_PROBABILITY:
        assert chosen(rule, batch.rollout_logprobs_T) >= 0
        with pytest.raises(NumericalError, match="log-probability of every token"):
            chosen(rule, unknown)


def test_energies_that_are_not_finite_are_refused() -> None:
    batch = make_batch()
    energies_T = torch.full((batch.num_tokens,), torch.nan)
    config, groups_T = SelectionConfig(rule="energy"), torch.zeros_like(batch.sequence_T)
    assert batch.rollout_entropies_T is not None
    with pytest.raises(NumericalError, match="energies of tokens are not finite"):
        select(
            *(batch, batch.rollout_entropies_T, groups_T, config),
            seed=0,
            step=1,
            energies_T=energies_T,
        )


def test_the_rule_of_marked_tokens_is_checked_with_that_of_the_run() -> None:
    check_rules(parse_config({"loss": {"marked": {"rule": "energy"}}}))
    with pytest.raises(ConfigError, match=r"loss.marked.rule = 'enrgy'.*did you mean 'energy'"):
        check_rules(parse_config({"loss": {"marked": {"rule": "enrgy"}}}))


def test_a_function_that_does_not_say_what_it_takes_is_given_its_parameters() -> None:
    found = rules_of(SelectionConfig(rule="builtins:max", parameters={"default": 1.0}))
    assert found["builtins:max"]([]) == 1.0  # type: ignore[arg-type]


def test_which_rules_a_fraction_says_the_size_of() -> None:
    n = 40
    values = torch.linspace(0.01, 0.99, n).tolist()
    found = candidates(p=values, entropies=values, energies=values, threshold_nats=0.5)
    for name in RULES:
        kept = [
            sum(w > 0 for w in weights(name, replace(found, keep_fraction=fraction)))
            for fraction in (0.25, 0.75)
        ]
        assert (kept[0] != kept[1]) == reads_fraction(name), name
    assert not reads_fraction("top+prefix")
    assert reads_fraction("mine:rule")


def test_a_changing_fraction_is_that_of_the_step() -> None:
    batch = make_batch()
    config = SelectionConfig(keep_fraction=0.2, keep_fraction_start=1.0, keep_fraction_steps=3)
    assert batch.rollout_entropies_T is not None
    groups_T = torch.zeros_like(batch.sequence_T)
    kept = [
        select(batch, batch.rollout_entropies_T, groups_T, config, seed=0, step=step).kept_tokens
        for step in (1, 2, 3)
    ]
    n = int(batch.pool_T.sum())
    assert kept == [n, math.ceil(0.6 * n), math.ceil(0.2 * n)]


# ---- where energies come from -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "entropies", "energies", "source"),
    [
        ("top", True, False, "rollout"),
        ("top", False, False, "old"),
        ("energy", True, True, "rollout"),
        ("energy", True, False, "old"),
        ("top+energy", True, False, "old"),
    ],
)
def test_auto_is_the_sampler_if_it_gave_what_the_rule_reads(
    rule: str, entropies: bool, energies: bool, source: str
) -> None:
    batch = make_batch()
    some_T = torch.ones_like(batch.advantages_T)
    batch = batch.with_streams(
        rollout_entropies_T=some_T if entropies else None,
        rollout_energies_T=some_T if energies else None,
    )
    assert source_of(batch, parse_config({"selection": {"rule": rule}})) == source


def test_every_rule_is_documented() -> None:
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "selection.md").read_text()
    assert [name for name in RULES if f"`{name}`" not in text] == []
