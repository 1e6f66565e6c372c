"""A step of verl's with our trainer: `make test-verl` installs verl in an environment of its own.

The loss and gradient of verl's own code on our fields are those of forkpoint's ``batch_loss``,
however verl cuts the batch.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

pytest.importorskip("verl")

import torch.multiprocessing
import transfer_queue as tq
from omegaconf import OmegaConf, open_dict
from verl.trainer.ppo.v1 import get_trainer_cls

from forkpoint import select_tokens
from forkpoint.config import RunConfig
from forkpoint.integrations.verl import choose_tokens, loss_fields
from forkpoint.losses import batch_loss, with_coefficients
from forkpoint.types import TokenBatch, TokenStats
from tests.verl import two_ranks
from tests.verl.runs import Engine, Step, Worker, Workers, composed, transfer_queue

pytestmark = pytest.mark.slow

ACTOR = "actor_rollout_ref.actor"
CUTS = (
    ("use_dynamic_bsz=True", "ppo_max_token_len_per_gpu=12"),
    ("use_dynamic_bsz=True", "ppo_max_token_len_per_gpu=1000"),
    ("use_dynamic_bsz=False", "ppo_micro_batch_size_per_gpu=1"),
    ("use_dynamic_bsz=False", "ppo_micro_batch_size_per_gpu=2"),
    ("use_dynamic_bsz=False", "ppo_micro_batch_size_per_gpu=3"),
)
"""The ways in which a mini-batch of 6 sequences becomes micro-batches."""

DENOMINATOR_OF = {
    ("selected", "token-mean"): "selected",
    ("all", "token-mean"): "all",
    ("selected", "seq-mean-token-mean"): "sequence_selected",
    ("all", "seq-mean-token-mean"): "sequence",
    ("selected", "seq-mean-token-sum-norm"): "constant",
    ("all", "seq-mean-token-sum-norm"): "constant",
    ("selected", "seq-mean-token-sum"): "constant",
    ("all", "token-sum"): "constant",
}
"""forkpoint's name of what verl divides by."""

CONSTANT = {"seq-mean-token-sum-norm": 7.0, "seq-mean-token-sum": 1.0, "token-sum": 1 / 6}
"""What ``constant`` multiplies the number of sequences, 6, by."""


@pytest.fixture(scope="module", autouse=True)
def _queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("gloo") / "store"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=0, world_size=1
    )
    with transfer_queue():
        yield
    torch.distributed.destroy_process_group()


@cache
def base() -> Any:
    return composed(
        "algorithm.adv_estimator=grpo",
        "data.train_batch_size=6",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.n=2",
        f"{ACTOR}.ppo_mini_batch_size=3",
        f"{ACTOR}.clip_ratio_high=0.28",
        f"{ACTOR}.loss_scale_factor=7",
    )


def config_of(cut: tuple[str, ...], *more: str, mode: str = "forkpoint", **ours: Any) -> Any:
    """verl's configuration with some settings of the actor, and of ours."""
    settings = [
        f"trainer.v1.trainer_mode={mode}",
        *(f"{ACTOR}.{setting}" for setting in (*cut, *more)),
        *(f"trainer.v1.forkpoint.{name}={value}" for name, value in ours.items()),
    ]
    with open_dict(base()):
        return OmegaConf.merge(base(), OmegaConf.from_dotlist(settings))


class Ran:
    """What a step did: the gradient and loss of each update, the batch its worker got, metrics."""

    def __init__(self, step: Step, config: Any) -> None:
        batch = step.put()
        trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config)
        self.engine = Engine(step.new)
        worker = Worker(config, self.engine)
        trainer.actor_rollout_wg = workers = Workers(worker)
        self.metrics: dict[str, Any] = {}
        self.trainer, self.batch = trainer, batch
        returned = trainer._update_actor(batch, self.metrics)
        assert returned is batch
        self.seen, self.losses, self.gradients = workers.seen, worker.losses, self.engine.gradients


def ours(step: Step, chosen: Any, rows: list[int], denominator: str, **loss: Any) -> Any:
    """Loss and gradient [12, L] of forkpoint's own functions on some rows of the step."""
    lengths = [step.lengths[row] for row in rows]
    flat = {
        name: torch.cat([values[row, : step.lengths[row]] for row in rows])
        for name, values in {
            "advantages": step.advantages,
            "mask": step.mask,
            "old": step.old,
            "new": step.new,
            "reference": step.reference,
            "chosen": chosen,
        }.items()
    }
    sequence_T = torch.arange(len(rows)).repeat_interleave(torch.tensor(lengths))
    tokens = [torch.arange(length) for length in lengths]
    config = RunConfig.model_validate(
        {"loss": {"dual_clip": 3.0, "denominator": denominator, **loss}}
    )
    batch = TokenBatch(
        prompts_B=tokens,
        completions_B=tokens,
        sequence_ids_B=torch.tensor(rows),
        token_ids_T=torch.cat(tokens),
        sequence_T=sequence_T,
        position_T=torch.cat(tokens),
        advantages_T=flat["advantages"],
        mask_T=flat["mask"].bool(),
        pool_T=flat["mask"].bool(),
        rollout_logprobs_T=flat["old"],
        old_logprobs_T=flat["old"],
        reference_logprobs_T=flat["reference"],
    )
    batch = with_coefficients(batch, flat["chosen"].float(), torch.zeros_like(sequence_T), config)
    logprobs_T = flat["new"].clone().requires_grad_()
    places_T = torch.arange(len(logprobs_T))
    nothing_T = torch.zeros_like(logprobs_T)
    stats = TokenStats(places_T, logprobs_T, nothing_T, nothing_T, 0)
    loss_of = batch_loss(batch, stats, config.loss).loss
    (gradient_T,) = torch.autograd.grad(loss_of, logprobs_T)
    whole = torch.zeros_like(step.new)
    for row, part in zip(rows, gradient_T.split(lengths), strict=True):
        whole[row, : len(part)] = part
    return loss_of.item(), whole


@pytest.mark.parametrize(("denominator", "mode"), list(DENOMINATOR_OF))
def test_verls_loss_is_forkpoints_whatever_the_micro_batch(denominator: str, mode: str) -> None:
    step = Step()
    chosen = select_tokens(step.entropies, step.competing(), 0.4)
    passes = set()
    for cut in CUTS:
        config = config_of(cut, f"loss_agg_mode={mode}", keep_fraction=0.4, denominator=denominator)
        ran = Ran(step, config)
        passes.add(tuple(ran.engine.passes))
        if denominator == "selected":
            mask = ran.seen["response_mask"].to_padded_tensor(0)
            assert torch.equal(mask.bool(), chosen)
        assert len(ran.gradients) == 2
        for update, rows in enumerate(([0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11])):
            name = DENOMINATOR_OF[denominator, mode]
            constant = {"constant_tokens": 1} if name == "constant" else {}
            loss, gradient = ours(step, chosen, rows, name, **constant)
            loss, gradient = loss / CONSTANT.get(mode, 1), gradient / CONSTANT.get(mode, 1)
            torch.testing.assert_close(ran.gradients[update], gradient, atol=1e-6, rtol=1e-5)
            assert ran.losses[update] == pytest.approx(loss, rel=1e-5, abs=1e-6)
            assert gradient.abs().max() > 0
    assert len(passes) > 3  # the cuts are different ones


@pytest.mark.parametrize("denominator", ["selected", "all"])
def test_a_kl_penalty_is_on_the_tokens_that_the_denominator_says(denominator: str) -> None:
    step = Step()
    chosen = select_tokens(step.entropies, step.competing(), 0.4)
    kl = ("use_kl_loss=True", "kl_loss_coef=0.1")
    ran = Ran(step, config_of(CUTS[0], *kl, keep_fraction=0.4, denominator=denominator))
    penalties = {"kl_coefficient": 0.1, "penalties_on": denominator}
    _, gradient = ours(step, chosen, [0, 1, 2, 3, 4, 5], denominator, **penalties)
    torch.testing.assert_close(ran.gradients[0], gradient, atol=1e-6, rtol=1e-5)


def test_metrics_and_what_verl_has_afterwards() -> None:
    step = Step()
    ran = Ran(step, config_of(CUTS[0], keep_fraction=0.4))
    competing = step.competing()
    chosen = select_tokens(step.entropies, competing, 0.4)
    assert ran.metrics["selection/pool_tokens"] == competing.sum()
    assert ran.metrics["selection/kept_tokens"] == chosen.sum()
    assert ran.metrics["selection/threshold_nats"] == step.entropies[chosen].min()
    names = ["response_mask", "loss_mask", "advantages"]
    after = tq.kv_batch_get(keys=ran.batch.keys, partition_id="train", select_fields=names)
    for name, values in zip(names, (step.mask, step.mask, step.advantages), strict=True):
        assert torch.equal(after[name].to_padded_tensor(0), values)
        assert after[name].dtype == values.dtype
    # verl takes it for what it is: in other modes its replay buffer is another class
    assert ran.trainer.trainer_mode == "sync"
    assert type(ran.trainer.replay_buffer).__name__ == "ReplayBuffer"


def test_an_update_without_a_chosen_token_is_one_of_zero() -> None:
    step = Step()  # the last 4 sequences are a flat group
    config = config_of(CUTS[3], "ppo_mini_batch_size=2", keep_fraction=0.4)
    ran = Ran(step, config)
    assert len(ran.losses) == 3
    assert ran.losses[2] == 0
    assert not ran.gradients[2].any()
    assert ran.gradients[1].any()


def test_with_every_token_kept_it_is_verls_own_step() -> None:
    step = Step()
    step.rewards[8:10] = 0.0  # no group is flat
    for denominator in ("selected", "all"):
        kept = Ran(step, config_of(CUTS[0], keep_fraction=1.0, denominator=denominator))
        stock = Ran(step, config_of(CUTS[0], mode="sync"))
        torch.testing.assert_close(kept.gradients, stock.gradients, atol=1e-7, rtol=1e-5)
        assert kept.losses == pytest.approx(stock.losses, rel=1e-5)


def test_what_verl_itself_selects_depends_on_the_micro_batch() -> None:
    # verl#7829: what docs/verl.md says of kl_cov
    step = Step()
    names = {"loss_mode": "kl_cov", "kl_cov_ratio": 0.1, "ppo_kl_coef": 1.0}
    more = [f"policy_loss.{name}={value}" for name, value in names.items()]
    runs = [Ran(step, config_of(cut, *more, mode="sync")) for cut in (CUTS[1], CUTS[2])]
    assert not torch.allclose(runs[0].gradients[0], runs[1].gradients[0], rtol=0.01)


def test_two_ranks_make_the_step_of_one(tmp_path: Any) -> None:
    step = Step()
    lengths = torch.tensor(step.lengths)
    inside = torch.arange(step.mask.shape[1]) < lengths[:, None]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    mask_T, advantages_T = step.mask[inside], step.advantages[inside]
    flat_T = (step.mask * (torch.arange(12) >= 8)[:, None])[inside] != 0
    chosen_T, _ = choose_tokens(step.entropies[inside], mask_T, advantages_T, flat_T, 0.4)
    fields = {
        denominator: loss_fields(chosen_T, mask_T, advantages_T, offsets, denominator)
        for denominator in ("selected", "all")
    }
    torch.save(fields, tmp_path / "fields")
    torch.multiprocessing.spawn(two_ranks.updates, (config_of(CUTS[0]), str(tmp_path)), nprocs=2)
    first, second = [torch.load(tmp_path / f"gradients{rank}") for rank in (0, 1)]
    chosen = torch.zeros_like(inside).masked_scatter(inside, chosen_T)
    for denominator in fields:
        torch.testing.assert_close(first[denominator], second[denominator])
        for update, rows in enumerate(([0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11])):
            _, gradient = ours(step, chosen, rows, denominator)
            found = first[denominator][update]
            torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-5)
