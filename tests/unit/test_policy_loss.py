"""The loss on plain tensors: by hand, as the loss of a run, for every cut, and refusals."""

import math
from typing import Any

import pytest
import torch

import forkpoint
from forkpoint.batching import build_batch
from forkpoint.config import parse_config
from forkpoint.errors import ConfigError
from forkpoint.losses import batch_loss, with_coefficients
from forkpoint.types import TokenStats
from tests.conftest import make_group

OLD = torch.tensor([[-1.0, -2.0, -0.5], [-0.3, -1.5, math.nan]])
NEW = torch.tensor([[-0.5, -2.1, -0.5], [-0.9, -1.4, math.inf]])
KEPT = torch.tensor([[True, True, False], [True, True, False]])
ADVANTAGES = torch.tensor([1.0, -2.0])


def test_by_hand() -> None:
    # ratios e^0.5 = 1.65 -> 1.28, e^-0.1; with A = -2: e^-0.6 = 0.55 -> 0.8, e^0.1
    logprobs = NEW.clone().requires_grad_()
    loss = forkpoint.policy_loss(logprobs, OLD, ADVANTAGES, KEPT, denominator=4)
    loss.backward()
    free = [math.exp(-0.1), -2 * math.exp(0.1)]
    assert loss.item() == pytest.approx(-(1.28 + free[0] - 1.6 + free[1]) / 4)
    assert logprobs.grad is not None
    slopes = [[0, -free[0] / 4, 0], [0, -free[1] / 4, 0]]
    torch.testing.assert_close(logprobs.grad, torch.tensor(slopes))  # 0 also beside nan and inf


@pytest.mark.parametrize("surrogate", ["ppo_clip", "reinforce", "cispo"])
@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_it_is_the_loss_of_a_run(surrogate: Any, dual_clip: float | None) -> None:
    settings: dict[str, Any] = {"clip_low": 0.1, "clip_high": 0.4, "dual_clip": dual_clip}
    settings["surrogate"] = surrogate
    config = parse_config({"loss": settings})
    batch = build_batch([make_group(0, [1.0, 0.0], [3, 3])], advantage="grpo")
    torch.manual_seed(0)
    entropies, old, new = torch.rand(2, 3), -torch.rand(2, 3) * 3, -torch.rand(2, 3) * 3
    kept = forkpoint.select_tokens(entropies, keep_fraction=0.5)
    batch = batch.with_streams(old_logprobs_T=old.flatten())
    batch = with_coefficients(
        batch, kept.flatten().float(), torch.zeros(6, dtype=torch.long), config
    )
    stats = TokenStats(
        rows_R=torch.arange(6),
        logprobs_R=new.flatten(),
        entropies_R=entropies.flatten(),
        energies_R=torch.zeros(6),
        body_tokens=6,
    )
    expected = batch_loss(batch, stats, config.loss).loss
    advantages = batch.advantages_T.view(2, 3)
    for given in (advantages, advantages[:, 0]):
        loss = forkpoint.policy_loss(new, old, given, kept, kept.sum(), **settings)
        torch.testing.assert_close(loss, expected)


def test_the_shares_of_any_cut_add_up() -> None:
    def share(rows: slice) -> torch.Tensor:
        return forkpoint.policy_loss(
            NEW[rows], OLD[rows], ADVANTAGES[rows], KEPT[rows], denominator=KEPT.sum()
        )

    torch.testing.assert_close(share(slice(0, 1)) + share(slice(1, 2)), share(slice(0, 2)))


def test_nothing_kept_is_a_gradient_of_zero() -> None:
    logprobs = NEW.clone().requires_grad_()
    nothing = torch.zeros_like(KEPT)
    forkpoint.policy_loss(logprobs, OLD, ADVANTAGES, nothing, denominator=3).backward()
    assert logprobs.grad is not None
    assert not logprobs.grad.any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"denominator": KEPT.sum() * 0}, "denominator = 0.0 is not positive"),
        ({"denominator": math.nan}, "denominator = nan is not positive"),
        ({"surrogate": "gspo"}, "'gspo' reads whole sequences"),
        ({"surrogate": "ppo"}, "policy_loss: loss.surrogate"),
        ({"clip_low": -0.2}, "loss.clip_low"),
        ({"dual_clip": 0.5}, "loss.dual_clip"),
        ({"kept": KEPT[:, :2]}, "they are .B, L., advantages .B. or .B, L."),
        ({"advantages": torch.ones(3)}, "advantages of .3,."),
        ({"advantages": torch.ones(2, 1)}, "advantages of .2, 1."),
    ],
)
def test_refusals(changed: dict[str, Any], message: str) -> None:
    given = {"old_logprobs": OLD, "advantages": ADVANTAGES, "kept": KEPT, "denominator": 4}
    with pytest.raises(ConfigError, match=message):
        forkpoint.policy_loss(NEW, **(given | changed))
