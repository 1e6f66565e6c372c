"""verl's synchronous trainer, whose actor is updated on the forks of the step."""

# pyright: reportMissingImports=false
# verl lives in an environment of its own; tests/verl hold the names that are used here.

from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from forkpoint.integrations.verl import (
    GROUP_RELATIVE,
    choose_tokens,
    flat_rows,
    log,
    loss_fields,
    read_settings,
)

FIELDS = ("uid", "entropy", "response_mask", "loss_mask", "advantages", "rm_scores")
"""Of verl's TransferQueue, all of the whole step when the actor's update begins."""


class ForkingPPOTrainer(PPOTrainerSync):
    """``trainer.v1.trainer_mode=forkpoint``; settings in ``trainer.v1.forkpoint``.

    Raises:
        ConfigError: see ``read_settings``.
    """

    def __init__(self, config: Any) -> None:
        self._settings = read_settings(config)
        super().__init__(config)
        share, denominator = self._settings.keep_fraction, self._settings.denominator
        log.info(
            "forkpoint: %g of each step's tokens, by entropy, divided by %s", share, denominator
        )

    def _build_replay_buffer(self) -> Any:
        # The first of many places where verl asks whether the mode is "sync". This one is.
        self.trainer_mode = "sync"
        return super()._build_replay_buffer()

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """verl's, on a batch that has our fields for as long as it takes."""
        data = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=list(FIELDS)
        )
        ours, numbers = self._choose(data)
        self._put(batch, ours)
        metrics.update(numbers)
        batch = super()._update_actor(batch, metrics)
        # verl's metrics and dumps are of what was sampled.
        self._put(batch, {name: data[name] for name in ours})
        return batch

    def _choose(self, data: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The changed fields, jagged [B, j], and metrics."""
        offsets = data["response_mask"].offsets()
        lengths_B = offsets.diff()
        mask_T, advantages_T = data["response_mask"].values(), data["advantages"].values()
        algorithm = self.config.algorithm
        flat_B = torch.zeros(len(lengths_B), dtype=torch.bool)
        if algorithm.adv_estimator in GROUP_RELATIVE and not algorithm.use_kl_in_reward:
            rewards_B = torch.stack([one.sum() for one in data["rm_scores"].unbind()])
            flat_B = flat_rows(rewards_B, list(data["uid"]))
        chosen_T, numbers = choose_tokens(
            data["entropy"].values(),
            mask_T,
            advantages_T,
            flat_B.repeat_interleave(lengths_B),
            self._settings.keep_fraction,
        )
        ours = loss_fields(chosen_T, mask_T, advantages_T, offsets, self._settings.denominator)
        jagged = torch.nested.nested_tensor_from_jagged
        return {name: jagged(values_T, offsets) for name, values_T in ours.items()}, numbers

    def _put(self, batch: Any, values: dict[str, Tensor]) -> None:
        tq.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=TensorDict(values, batch_size=len(batch)),
        )
