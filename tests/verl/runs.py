"""verl's own step on a CPU: its TransferQueue, worker, micro-batches and loss, without a model.

What is made up is the model (a number for each token's log-probability, so that its gradient can be
read) and the optimizer. Everything between the trainer's ``_update_actor`` and that is verl's.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transfer_queue as tq
import verl
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor
from verl.utils import seqlen_balancing
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.profiler import DistProfiler
from verl.utils.tensordict_utils import get_tensordict, list_of_dict_to_tensordict
from verl.utils.transferqueue_utils import _meta_to_realdata
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.losses import ppo_loss

# verl names a GPU where there is none.
transformer_impl.get_device_id = lambda: "cpu"
seqlen_balancing.get_device_name = lambda: "cpu"

CONFIGS = Path(verl.__file__).parent / "trainer" / "config"


def composed(*overrides: str) -> Any:
    """verl's configuration as ``verl.trainer.main_ppo`` composes it."""
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("ppo_trainer", overrides=list(overrides))


class Engine(transformer_impl.FSDPEngineWithLMHead):
    """verl's FSDP engine with a table in the place of a model."""

    def __init__(self, logprobs: Tensor) -> None:  # verl's asks for a GPU
        self.logprobs = logprobs.clone().requires_grad_()
        self.gradients: list[Tensor] = []
        self.passes: list[int] = []
        self.ulysses_sequence_parallel_size = 1

    def get_data_parallel_size(self) -> int:
        return torch.distributed.get_world_size()

    def get_data_parallel_rank(self) -> int:
        return torch.distributed.get_rank()

    def get_data_parallel_group(self) -> Any:
        return torch.distributed.group.WORLD

    def is_mp_src_rank_with_outputs(self) -> bool:
        return True

    def train_mode(self, **_: Any) -> Any:
        return nullcontext()

    def _gradient_sync_context(self, **_: Any) -> Any:
        return nullcontext()

    def forward_step(self, micro_batch: Any, loss_function: Any, forward_only: bool) -> Any:
        """As verl's: log-probabilities of every token, a position early; then verl's loss."""
        self.passes[-1] += 1
        rows = []
        lengths = [micro_batch[name].offsets().diff() for name in ("prompts", "responses")]
        for number, prompt, response in zip(micro_batch["row"], *lengths, strict=True):
            own = self.logprobs[int(number), :response]
            rows.append(torch.cat([torch.zeros(prompt - 1), own, torch.zeros(1)]))
        output = {"log_probs": torch.nested.as_nested_tensor(rows, layout=torch.jagged)}
        loss, metrics = loss_function(model_output=output, data=micro_batch, dp_group=None)
        return loss, {"model_output": {}, "loss": loss.detach().item(), "metrics": metrics}

    def optimizer_zero_grad(self) -> None:
        self.logprobs.grad = torch.zeros_like(self.logprobs)
        self.passes.append(0)

    def optimizer_step(self) -> float:
        """What FSDP leaves in the gradients: the mean over the ranks."""
        assert self.logprobs.grad is not None
        torch.distributed.all_reduce(self.logprobs.grad)
        self.gradients.append(self.logprobs.grad / self.get_data_parallel_size())
        return 0.0

    def lr_scheduler_step(self) -> float:
        return 0.0


class Worker(TrainingWorker):
    """verl's worker around that engine."""

    def __init__(self, config: Any, engine: Engine) -> None:
        actor = config.actor_rollout_ref.actor
        self.engine = engine
        self.loss_fn = lambda **given: ppo_loss(omega_conf_to_dataclass(actor), **given)
        self.model_config = {"use_remove_padding": True}
        self.engine_config = SimpleNamespace(
            forward_only=False,
            use_dynamic_bsz=actor.use_dynamic_bsz,
            max_token_len_per_gpu=actor.ppo_max_token_len_per_gpu,
            micro_batch_size_per_gpu=actor.ppo_micro_batch_size_per_gpu,
            use_fused_kernels=False,
        )
        self.flops_counter = None
        self.profiler = DistProfiler(rank=0)
        self.losses: list[float] = []

    def _postprocess_output(self, output: Any, **_: Any) -> Any:  # verl's asks for a GPU's memory
        loss = torch.tensor(output["loss"]).sum()
        torch.distributed.all_reduce(loss)
        self.losses.append(float(loss) / self.engine.get_data_parallel_size())
        return get_tensordict({}, {"metrics": {"mfu": 0.0}})


class Workers:
    """In the place of verl's Ray workers: one, in this process, which reads the TransferQueue."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.seen: Any = None

    def update_actor(self, batch: Any) -> Any:
        self.seen = _meta_to_realdata(batch)
        self.worker.train_mini_batch(self.seen.clone())
        return {"metrics": {"mfu": 0.0}}


@contextmanager
def transfer_queue() -> Iterator[None]:
    """verl's store of batches, on a Ray of its own."""
    import ray

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    config = OmegaConf.load(CONFIGS / "transfer_queue" / "transfer_queue.yaml")
    config.backend.SimpleStorage.num_data_storage_units = 1
    try:
        tq.init(config)
        yield
    finally:
        tq.close()
        ray.shutdown()


class Step:
    """A made-up step of 3 prompts x 4 answers.

    The last prompt's rewards are all 0.9, row 5 is padding of verl's, row 2 has a tool's token.
    """

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.lengths = torch.randint(2, 9, (12,), generator=draw).tolist()
        self.lengths[5] = 1
        rows, longest = range(12), max(self.lengths)
        numbers = torch.rand(3, 12, longest, generator=draw)
        self.old = -3 * numbers[0]
        self.new = self.old + 0.8 * (numbers[1] - 0.5)
        self.reference = self.old - 0.3 * numbers[2]
        self.entropies = numbers[2]
        self.mask = torch.zeros(12, longest, dtype=torch.int64)
        for row in rows:
            self.mask[row, : self.lengths[row]] = 1
        self.mask[2, 1] = self.mask[5, 0] = 0
        self.uids = ["a"] * 4 + ["b"] * 4 + ["c"] * 4
        self.uids[5] = "pad"
        self.rewards = torch.tensor([1.0, 0, 0, 1, 0, 0, 1, 0] + [0.9] * 4)
        worth = torch.tensor([0.9, -0.9, -0.9, 0.9, -0.5, 0, 1.2, -0.5, 0.05, 0.05, 0.05, 0.05])
        self.advantages = worth[:, None] * self.mask
        self.keys = [f"{uid}_{row}_0" for row, uid in zip(rows, self.uids, strict=True)]

    def rows(self) -> list[dict[str, Any]]:
        """The fields of each sequence when the actor's update begins."""
        rows = []
        for row, length in enumerate(self.lengths):
            scores = torch.zeros(length)
            scores[-1] = self.rewards[row]
            prompt, response = torch.arange(2 + row % 3), torch.arange(length)
            rows.append(
                {
                    "uid": self.uids[row],
                    "row": row,
                    "prompts": prompt,
                    "responses": response,
                    "input_ids": torch.cat([prompt, response]),
                    "response_mask": self.mask[row, :length],
                    "loss_mask": self.mask[row, :length],
                    "rm_scores": scores,
                    "advantages": self.advantages[row, :length],
                    "old_log_probs": self.old[row, :length],
                    "ref_log_prob": self.reference[row, :length],
                    "entropy": self.entropies[row, :length],
                }
            )
        return rows

    def put(self) -> Any:
        """The step in verl's TransferQueue."""
        tags = [{"is_padding": uid == "pad"} for uid in self.uids]
        fields = list_of_dict_to_tensordict(self.rows())
        return tq.kv_batch_put(keys=self.keys, partition_id="train", fields=fields, tags=tags)

    def competing(self) -> Tensor:
        """By hand: answers to the first two prompts, without padding and the tool's tokens."""
        found = self.mask.bool()
        found[8:] = False
        return found
