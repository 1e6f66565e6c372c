"""What the verl integration does on plain tensors, where there is no verl."""

import sys
from importlib.util import find_spec

import pytest
import torch

from forkpoint.errors import ConfigError, SelectionError
from forkpoint.integrations import verl
from forkpoint.selection import select_tokens

OFFSETS = torch.tensor([0, 3, 5, 9])
ENTROPIES = torch.tensor([0.1, 2.0, 0.3, 3.0, 0.2, 1.0, 0.4, 5.0, 0.9])
MASK = torch.tensor([1, 1, 1, 1, 1, 1, 1, 0, 1])
ADVANTAGES = torch.tensor([1.0, 1, 1, 0, 0, -1, -1, -1, -1])


def choose(fraction: float) -> torch.Tensor:
    flat = torch.zeros(9, dtype=torch.bool)
    return verl.choose_tokens(ENTROPIES, MASK, ADVANTAGES, flat, fraction)[0]


def test_tokens_without_an_advantage_and_tools_do_not_compete() -> None:
    # the highest two are a tool's and of a sequence without an advantage
    assert choose(0.3).nonzero().flatten().tolist() == [1, 5]  # ceil(0.3 * 6)


def test_a_flat_group_does_not_compete() -> None:
    flat = torch.tensor([True] * 3 + [False] * 6)
    chosen, numbers = verl.choose_tokens(ENTROPIES, MASK, ADVANTAGES, flat, 0.5)
    assert chosen.nonzero().flatten().tolist() == [5, 8]
    assert numbers == {
        "selection/pool_tokens": 3.0,
        "selection/kept_tokens": 2.0,
        "selection/pool_share": 3 / 8,
        "selection/threshold_nats": pytest.approx(0.9),
        "loss/entropy_mean_kept": pytest.approx(0.95),
    }


def test_it_is_select_tokens() -> None:
    competing = (MASK != 0) & (ADVANTAGES != 0)
    for fraction in (0.01, 0.2, 0.5, 1.0):
        assert torch.equal(choose(fraction), select_tokens(ENTROPIES, competing, fraction))


def test_a_step_without_competitors_chooses_nothing() -> None:
    every = torch.ones(9, dtype=torch.bool)
    chosen, numbers = verl.choose_tokens(ENTROPIES, MASK, ADVANTAGES, every, 0.2)
    assert not chosen.any()
    assert numbers["selection/kept_tokens"] == 0
    assert "selection/threshold_nats" not in numbers


def test_an_entropy_that_is_not_finite_is_an_error() -> None:
    entropies = ENTROPIES.clone()
    entropies[0] = torch.nan
    with pytest.raises(SelectionError, match="not finite"):
        verl.choose_tokens(entropies, MASK, ADVANTAGES, MASK == 2, 0.2)


def test_selected_narrows_the_masks_and_no_count_is_zero() -> None:
    chosen = choose(0.3)
    fields = verl.loss_fields(chosen, MASK, ADVANTAGES, OFFSETS, "selected")
    assert fields.keys() == {"response_mask", "loss_mask"}
    assert fields["response_mask"].tolist() == chosen.int().tolist()
    assert fields["response_mask"].dtype == MASK.dtype
    assert fields["loss_mask"].sum() == 2.0  # exactly: what the second sequence counts is lost
    assert 0 < fields["loss_mask"][3:5].sum() < 1e-9


def test_the_count_is_exact_among_many_sequences_without_a_choice() -> None:
    chosen = torch.zeros(100_000, dtype=torch.bool)
    offsets = torch.arange(0, 100_001, 10)
    chosen[77] = True
    counted = verl.loss_fields(chosen, chosen.long(), chosen.float(), offsets, "selected")
    assert counted["loss_mask"].sum() == 1.0
    assert counted["loss_mask"].sum(dtype=torch.float64) != 1.0


def test_all_leaves_the_masks_and_takes_the_advantages() -> None:
    fields = verl.loss_fields(choose(0.3), MASK, ADVANTAGES, OFFSETS, "all")
    assert fields.keys() == {"advantages"}
    assert fields["advantages"].tolist() == [0, 1, 0, 0, 0, -1, 0, 0, 0]


@pytest.mark.parametrize(
    ("rewards", "flat"),
    [
        ([0.9, 0.9, 0.9, 1.0], [True, True, True, True]),
        ([0.1 + 0.2, 0.3, 0.3, 1.0], [True, True, True, True]),
        ([0.0, 1.0, 0.0, 0.0], [False, False, False, True]),
        ([100.0, 100.00001, 100.0, 0.0], [True, True, True, True]),
        ([0.0, 0.001, 0.0, 0.0], [False, False, False, True]),
    ],
)
def test_groups_of_equal_rewards_are_flat(rewards: list[float], flat: list[bool]) -> None:
    found = verl.flat_rows(torch.tensor(rewards), ["a", "a", "a", "b"])
    assert found.tolist() == flat


def test_groups_need_not_stand_together() -> None:
    found = verl.flat_rows(torch.tensor([0.0, 1.0, 0.0, 0.0]), ["a", "b", "a", "b"])
    assert found.tolist() == [True, False, True, False]


@pytest.mark.skipif(find_spec("verl") is not None, reason="verl is here")
def test_without_verl_registering_says_what_to_install() -> None:
    with pytest.raises(
        ConfigError, match=r"verl is not installed: pip install 'verl>=0.9.1,<0.10'"
    ):
        verl.register()


def test_the_plugin_waits_for_verls_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    from forkpoint.integrations import verl_plugin

    waiting = [one for one in sys.meta_path if isinstance(one, verl_plugin.AfterTrainers)]
    assert waiting
    assert waiting[0].find_spec("forkpoint.anything", None) is None
    for one in waiting:
        sys.meta_path.remove(one)
