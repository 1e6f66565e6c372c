"""The preset ``trl`` against TRL's own ``GRPOTrainer._compute_loss``, on random steps.

TRL's method is run as it is; around it stands what its trainer would have prepared: rectangles,
advantages, old and reference log-probabilities, the number of tokens of the generation batch.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from forkpoint.batching import split_minibatches
from forkpoint.config import parse_config
from forkpoint.config.run import RunConfig
from forkpoint.policy.load import LoadedModel
from forkpoint.policy.module import PolicyModule
from forkpoint.training import step as step_module
from forkpoint.training.optimizer import Optimizer
from forkpoint.types import TokenBatch
from tests.conftest import make_batch
from tests.peer_steps import Step, gradients, our_losses, random_step, rectangle

LOSS_TYPES = ["dapo", "grpo", "dr_grpo", "cispo"]
SEEDS = 40
"""Random steps for each of the loss types, with and without KL, truncation, ties."""


def preset(loss_type: str, keep_fraction: float, *, beta: float, truncated: str) -> RunConfig:
    return parse_config(
        {
            "selection": {"preset": "trl", "keep_fraction": keep_fraction},
            "loss": {"preset": loss_type, "kl_coefficient": beta},
            "rollout": {"truncated": truncated, "max_new_tokens": 12},
            "training": {"micro_batch_sequences": 1},
        }
    )


def trl_trainer(step: Step, config: RunConfig) -> Any:
    """A ``GRPOTrainer`` of one process with all that ``_compute_loss`` reads."""
    pytest.importorskip("trl")
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer: Any = GRPOTrainer.__new__(GRPOTrainer)
    vars(trainer).update(
        accelerator=SimpleNamespace(
            num_processes=1,
            gather=lambda tensor: tensor,
            reduce=lambda tensor, reduction: tensor,
            pad_across_processes=lambda tensor, dim, pad_index: tensor,
        ),
        args=SimpleNamespace(
            delta=None,
            use_bias_correction_kl=False,
            steps_per_generation=step.updates * step.accumulation,
        ),
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=step.accumulation,
        loss_type=config.loss.preset,
        beta=config.loss.kl_coefficient,
        epsilon_low=config.loss.clip_low,
        # absolute for cispo, relative for the others
        epsilon_high=config.loss.clip_high + (config.loss.preset == "cispo"),
        top_entropy_quantile=config.selection.keep_fraction,
        max_completion_length=config.rollout.max_new_tokens,
        importance_sampling_level="token",
        off_policy_mask_threshold=None,
        use_vllm=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        # a forward pass: what the policy says of the tokens, given as the model's input
        _get_per_token_logps_and_entropies=lambda model, *_, **__: (*model, None),
    )
    return trainer


def trl_losses(step: Step, config: RunConfig) -> list[Tensor]:
    """The loss that TRL accumulates for each update."""
    trainer, batch = trl_trainer(step, config), step.batch
    losses = []
    for micro_batches in step.micro_batches:
        loss = torch.zeros(())
        for sequences in micro_batches:
            mask_BL = rectangle(step, sequences, batch.mask_T.int(), 0)
            advantages_BL = rectangle(step, sequences, batch.advantages_T)
            model = (
                rectangle(step, sequences, step.logprobs_T),
                rectangle(step, sequences, step.entropies_T),
            )
            inputs = {
                "prompt_ids": torch.ones(len(sequences), 1, dtype=torch.int64),
                "prompt_mask": torch.ones(len(sequences), 1, dtype=torch.int64),
                "completion_ids": torch.ones_like(mask_BL),
                "completion_mask": mask_BL,
                "advantages": advantages_BL[:, 0],
                "old_per_token_logps": rectangle(step, sequences, batch.old_logprobs_T),
                "ref_per_token_logps": rectangle(step, sequences, batch.reference_logprobs_T),
                "num_items_in_batch": batch.mask_T.sum(),
            }
            loss = loss + trainer._compute_loss(model, inputs)
        losses.append(loss)
    return losses


def agree(ours: list[Tensor], theirs: list[Tensor]) -> None:
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("truncated", ["keep", "mask"])
@pytest.mark.parametrize("tied", [False, True])
def test_losses_and_gradients_are_trls(
    loss_type: str, beta: float, truncated: str, tied: bool
) -> None:
    updates, losses = set(), []
    for seed in range(SEEDS):
        keep_fraction = [0.2, 0.2, 0.5, 1.0][seed % 4]
        config = preset(loss_type, keep_fraction, beta=beta, truncated=truncated)
        step = random_step(seed, config, tied=tied)
        ours, theirs = our_losses(step, config), trl_losses(step, config)
        agree(ours, theirs)
        agree(gradients(ours, step), gradients(theirs, step))
        updates.add((step.updates, step.accumulation))
        losses += theirs
    assert len(updates) == 9
    assert torch.stack(losses).abs().mean() > 1e-3  # there is something to agree on


def test_an_update_is_divided_by_the_mean_update_not_by_its_own_tokens() -> None:
    # two updates of 2 and 6 tokens, each with one selected: 1 / ((2 + 6) / 2) in both
    step, config = _uneven_step()
    assert [loss.item() for loss in trl_losses(step, config)] == pytest.approx([-0.25, -0.25])
    assert [loss.item() for loss in our_losses(step, config)] == pytest.approx([-0.25, -0.25])


def _uneven_step() -> tuple[Step, RunConfig]:
    from forkpoint.batching import build_batch
    from tests.conftest import make_group

    config = preset("dapo", 0.01, beta=0.0, truncated="keep")
    batch = build_batch(
        [make_group(0, [1.0, 0.0], [2, 6])], advantage="dr_grpo", zero_advantage_in_pool=True
    )
    zeros_T = torch.zeros(8)
    return (
        Step(
            batch=batch.with_streams(
                old_logprobs_T=zeros_T,
                reference_logprobs_T=zeros_T,
                advantages_T=torch.ones(8),
            ),
            truncated_B=torch.tensor([False, False]),
            logprobs_T=torch.zeros(8, requires_grad=True),
            entropies_T=torch.arange(8.0),
            updates=2,
            accumulation=1,
            rows=1,
        ),
        config,
    )


@pytest.mark.parametrize("mini_batches", [1, 2, 3, 9])
def test_a_training_step_divides_by_the_steps_tokens_per_update(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, mini_batches: int
) -> None:
    config = parse_config(
        {
            "selection": {"preset": "trl"},
            "loss": {"importance_cap": "none"},  # the batch's probabilities are made up
            "training": {"mini_batches": mini_batches, "micro_batch_sequences": 2},
            "model": {"device": "cpu"},
        }
    )
    batch = make_batch(zero_advantage_in_pool=True)
    policy = PolicyModule(loaded.model, gradient="sparse", temperature=1.0)
    parts: list[TokenBatch] = []
    original = step_module.update

    def update(policy: Any, optimizer: Any, part: TokenBatch, *rest: Any, **named: Any) -> Any:
        parts.append(part)
        return original(policy, optimizer, part, *rest, **named)

    monkeypatch.setattr(step_module, "update", update)
    optimizer = Optimizer(loaded.model, config.optim)
    step_module.train_step(policy, optimizer, batch, config, step=1, same_weights=False)
    updates = len(split_minibatches(batch, mini_batches))
    assert len(parts) == updates == min(mini_batches, batch.num_sequences)
    for part in parts:
        assert part.coefficients_T is not None
        assert part.weights_T is not None
        expected_T = part.weights_T * updates / batch.num_tokens
        torch.testing.assert_close(part.coefficients_T, expected_T)
