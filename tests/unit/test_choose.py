"""A step's choice of tokens: the share of energy it holds, tokens with a loss of their own."""

from typing import Any

import pytest
import torch

from forkpoint.batching import build_batch
from forkpoint.config import parse_config
from forkpoint.entropy import reference_energy
from forkpoint.errors import ConfigError
from forkpoint.policy import PolicyModule
from forkpoint.selection import Candidates
from forkpoint.training.choose import choose
from forkpoint.training.meter import Meter
from forkpoint.training.optimizer import Optimizer
from forkpoint.training.step import train_step
from tests.conftest import make_batch, make_group, tiny_model


def test_the_share_of_energy_by_hand() -> None:
    # rewards 1 and 0: A = +-0.7071 (GRPO), A^2 equal for all. E = 0.5, 0.1, 0.2, 0.2; the entropies
    # pick the first and the third: 0.7 of 1.0
    rows = [[0.9, 0.1], [0.8, 0.2]]
    batch = build_batch([make_group(0, [1.0, 0.0], [2, 2], entropies=rows)], advantage="grpo")
    batch = batch.with_streams(rollout_energies_T=torch.tensor([0.5, 0.1, 0.2, 0.2]))
    meter = Meter()
    config = parse_config({"selection": {"keep_fraction": 0.5}})
    policy = PolicyModule(tiny_model(), gradient="sparse", temperature=1.0)
    groups_T = torch.zeros_like(batch.sequence_T)
    choose(policy, batch, groups_T, config, meter, step=1)
    assert meter.means()["selection/energy_share"] == pytest.approx(0.7)
    # one answer is worth twice the other: A^2 = 4, 4, 1, 1
    meter = Meter()
    batch = batch.with_streams(advantages_T=torch.tensor([2.0, 2.0, -1.0, -1.0]))
    choose(policy, batch, groups_T, config, meter, step=1)
    assert meter.means()["selection/energy_share"] == pytest.approx(2.2 / 2.8)
    # a sampler that does not know is not asked
    meter = Meter()
    unknown = batch.with_streams(rollout_energies_T=None)
    choose(policy, unknown, groups_T, config, meter, step=1)
    assert "selection/energy_share" not in meter.means()


@pytest.mark.parametrize("source", ["old", "current"])
def test_energies_of_a_pass_are_the_models_own(source: str) -> None:
    model = tiny_model()
    policy = PolicyModule(model, gradient="sparse", temperature=0.9)
    config = parse_config(
        {
            "selection": {"entropy": source, "rule": "energy", "keep_fraction": 0.25},
            "training": {"mini_batches": 1},
        }
    )
    batch = make_batch()
    stats = policy.annotate(batch, max_tokens=64)
    expected = torch.zeros(batch.num_tokens, dtype=torch.float64)
    for b, (prompt, completion) in enumerate(
        zip(batch.prompts_B, batch.completions_B, strict=True)
    ):
        ids = torch.cat([prompt, completion])
        logits = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1]
        expected[batch.rows_of([b])] = reference_energy(logits.detach(), completion, 0.9)
    torch.testing.assert_close(stats.energies_R.double(), expected, rtol=1e-3, atol=1e-6)
    result = train_step(
        *(policy, Optimizer(model, config.optim), batch, config), step=1, same_weights=False
    )
    energy_T = batch.advantages_T.double().square() * expected
    assert result.batch.weights_T is not None
    kept_T = result.batch.weights_T > 0
    pool = int(batch.pool_T.sum())
    best = energy_T[batch.pool_T].topk(-(-pool // 4)).values
    assert result.metrics["selection/energy_share"] == pytest.approx(
        float(best.sum() / energy_T.sum()), rel=1e-4
    )
    assert energy_T[kept_T].sum().item() == pytest.approx(float(best.sum()), rel=1e-6)


WIDE = {"clip_low": 1.0, "clip_high": 1e6}


@pytest.mark.parametrize("scope", ["batch", "minibatch", "sequence"])
@pytest.mark.parametrize("gradient", ["sparse", "dense"])
def test_marked_tokens_reach_the_loss(scope: str, gradient: str) -> None:
    """Marks on every token are the same run as their bounds for everyone; marks on a few differ
    from both; and how the batch is cut changes nothing."""

    def weights(loss: dict[str, Any], micro_batch_tokens: int = 4096) -> torch.Tensor:
        config = parse_config(
            {
                "selection": {"rule": "all", "scope": scope, "entropy": "old"},
                "loss": {"clip_low": 0.001, "clip_high": 0.001, "importance_cap": "none", **loss},
                "optim": {"lr": 1.0, "eps": 1.0},  # no signs of tiny gradients
                "training": {"mini_batches": 3, "micro_batch_tokens": micro_batch_tokens},
            }
        )
        model = tiny_model()
        policy = PolicyModule(model, gradient=gradient, temperature=1.0)
        optimizer = Optimizer(model, config.optim)
        train_step(policy, optimizer, make_batch(), config, step=1, same_weights=False)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    plain, wide = weights({}), weights(WIDE)
    everywhere = weights({"marked": {"rule": "all", **WIDE}})
    forks = {"marked": {"rule": "top", "keep_fraction": 0.2, **WIDE}}
    archer = weights(forks)
    torch.testing.assert_close(everywhere, wide)
    assert (archer - plain).norm() > 1e-4
    assert (archer - wide).norm() > 1e-4
    torch.testing.assert_close(weights(forks, micro_batch_tokens=40), archer, rtol=1e-4, atol=1e-5)
    drift = {"marked": {**forks["marked"], "drift_coefficient": 0.5}}
    drifting = weights(drift)
    assert (drifting - archer).norm() > 1e-4
    torch.testing.assert_close(
        weights(drift, micro_batch_tokens=40), drifting, rtol=1e-4, atol=1e-5
    )


def test_before_the_first_update_nothing_has_drifted() -> None:
    """|ln pi - ln pi_old| is rounding there, whose sign must not be a gradient."""

    def norm(drift: float) -> float:
        marked = {"rule": "all", "drift_coefficient": drift}
        config = parse_config(
            {
                "selection": {"rule": "all", "entropy": "old"},
                "loss": {"importance_cap": "none", "marked": marked},
                "training": {"mini_batches": 1},
            }
        )
        model = tiny_model()
        policy = PolicyModule(model, gradient="sparse", temperature=1.0)
        optimizer = Optimizer(model, config.optim)
        step = train_step(policy, optimizer, make_batch(), config, step=1, same_weights=False)
        return step.metrics["grad/norm"]

    assert norm(10.0) == norm(0.0)


def of_the_last_sequence(candidates: Candidates) -> torch.Tensor:
    return (candidates.sequence_ids_N == candidates.sequence_ids_N.max()).float()


def test_a_mini_batch_without_an_update_lets_nothing_drift() -> None:
    """The first update of a step is the first that is made."""

    def found(drift: float) -> tuple[float, int]:
        marked = {"rule": "all", "drift_coefficient": drift}
        config = parse_config(
            {
                "selection": {"rule": f"{__name__}:of_the_last_sequence", "entropy": "old"},
                "loss": {"importance_cap": "none", "marked": marked},
                "training": {"mini_batches": 2},
            }
        )
        model = tiny_model()
        policy = PolicyModule(model, gradient="sparse", temperature=1.0)
        optimizer = Optimizer(model, config.optim)
        step = train_step(policy, optimizer, make_batch(), config, step=1, same_weights=False)
        assert "mismatch/kl" in step.metrics
        return step.metrics["grad/norm"], optimizer.updates

    assert found(10.0) == found(0.0)
    assert found(0.0)[1] == 1


def test_marks_by_sequence_or_by_all_that_compete() -> None:
    # a mark on half of each sequence, or on half of the four tokens
    rows = [[0.9, 0.8], [0.2, 0.1]]
    batch = build_batch([make_group(0, [1.0, 0.0], [2, 2], entropies=rows)], advantage="grpo")
    policy = PolicyModule(tiny_model(), gradient="sparse", temperature=1.0)
    for scope, expected in (("sequence", [1, 0, 1, 0]), ("step", [1, 1, 0, 0])):
        marked = {"rule": "top", "keep_fraction": 0.5, "scope": scope}
        config = parse_config({"selection": {"rule": "all"}, "loss": {"marked": marked}})
        groups_T = torch.zeros_like(batch.sequence_T)
        found = choose(policy, batch, groups_T, config, Meter(), step=1)
        assert found.marked_T is not None
        assert found.marked_T.tolist() == expected
        assert found.weights_T.tolist() == [1, 1, 1, 1]


def test_a_kl_of_marked_tokens_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs loss"):
        parse_config({"loss": {"marked": {"kl_coefficient": 0.1}}})
