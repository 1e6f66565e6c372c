"""verl's V1 trainer on the forks: chosen exactly over the whole batch of a step.

    python -m verl.trainer.main_ppo trainer.v1.trainer_mode=forkpoint ...

verl finds ``forkpoint.integrations.verl_plugin`` by itself where both are installed. Its trainer
(``forkpoint.integrations.verl_trainer``) is verl's synchronous one; what it adds is here, on plain
tensors, and needs torch alone: which tokens compete, which of them are chosen, and which of a
batch's fields say so to verl's loss.

With m_t verl's response mask, w_t the choice, l_t the loss of a token and a mini-batch of N
sequences, over all ranks, verl's ``loss_agg_mode`` makes of the two denominators

    token-mean               selected  sum w l / sum w          all  sum w l / sum m
    seq-mean-token-mean      selected  mean_i (sum w l / sum w) all  mean_i (sum w l / sum m)
    seq-mean-token-sum-norm  both      sum w l / (N L)          L = loss_scale_factor
    seq-mean-token-sum       both      sum w l / N
    token-sum                both      sum w l

which are forkpoint's ``selected`` and ``all``, ``sequence_selected`` and ``sequence``, and
``constant`` (``forkpoint.losses.denominators``). ``selected`` narrows the mask, so verl's KL
penalty and entropy bonus are of the chosen tokens too; ``all`` sets the advantages of the others
to 0, so that these stay what verl makes of them, on every token.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from forkpoint.errors import ConfigError
from forkpoint.integrations.flat import flat_groups
from forkpoint.integrations.versions import check_version
from forkpoint.selection.tokens import select_tokens

MODE = "forkpoint"
"""Of ``trainer.v1.trainer_mode``, and the place of the settings: ``trainer.v1.forkpoint``."""

DENOMINATORS = ("selected", "all")

TOKEN_LOSSES = ("vanilla", "cispo", "dppo_tv", "dppo_kl", "gpg", "sapo")
"""verl's policy losses that are sums over tokens of something times the token's own advantage."""

GROUP_RELATIVE = ("grpo", "grpo_vectorized", "rloo", "rloo_vectorized", "opo", "gpg")
"""verl's estimators under which a group of equal rewards has no advantage but rounding."""

NOTHING = 2.0**-40
"""Above 0, and lost where it is added to a count of tokens."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerlSettings:
    """``trainer.v1.forkpoint`` of verl's configuration.

    Raises:
        ConfigError: a value is out of range.
    """

    keep_fraction: float = 0.2
    """Of the tokens of a step that compete."""
    denominator: str = "selected"
    """``selected`` or ``all``; see the module."""

    def __post_init__(self) -> None:
        if not 0 < self.keep_fraction <= 1:
            raise ConfigError(
                f"trainer.v1.{MODE}.keep_fraction is {self.keep_fraction}: it is above 0, at most 1"
            )
        if self.denominator not in DENOMINATORS:
            raise ConfigError(
                f"trainer.v1.{MODE}.denominator is {self.denominator!r}: it is one of "
                f"{', '.join(DENOMINATORS)}"
            )


def read_settings(config: Any) -> VerlSettings:
    """The settings of a verl run, after a look at what else it is configured to do.

    Args:
        config: verl's, composed by hydra.

    Raises:
        ConfigError: a setting that is not one, or something with which the choice would not be
            what it says it is; with the setting to change.
    """
    given: Mapping[str, Any] = config.trainer.v1.get(MODE) or {}
    known = [field.name for field in fields(VerlSettings)]
    for name in given:
        if name not in known:
            raise ConfigError(f"trainer.v1.{MODE}.{name} is no setting: {', '.join(known)} are")
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    wrong = {
        f"actor_rollout_ref.actor.strategy={actor.strategy}: fsdp or fsdp2, the engines it was "
        "made for": actor.strategy not in ("fsdp", "fsdp2"),
        "actor_rollout_ref.model.use_fused_kernels=True with impl_backend=torch rounds entropies "
        "to bfloat16, and most of the tokens at the edge are then equal: use impl_backend=triton, "
        "or no fused kernels": (
            model.use_fused_kernels and model.fused_kernel_options.impl_backend == "torch"
        ),
        "algorithm.rollout_correction.bypass_mode=True leaves out the pass for old "
        "log-probabilities, which is where the entropies come from: set it to False": (
            (config.algorithm.get("rollout_correction") or {}).get("bypass_mode", False)
        ),
        f"actor_rollout_ref.actor.policy_loss.loss_mode={actor.policy_loss.loss_mode} looks at "
        "more of a sequence than a token and its own advantage: use one of "
        f"{', '.join(TOKEN_LOSSES)}": actor.policy_loss.loss_mode not in TOKEN_LOSSES,
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm without loss_scale_factor "
        "divides by the longest answer of each micro-batch: set loss_scale_factor": (
            actor.loss_agg_mode == "seq-mean-token-sum-norm" and actor.loss_scale_factor is None
        ),
        "distillation.enabled=True has a loss of its own: set it to False": (
            (config.get("distillation") or {}).get("enabled", False)
        ),
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise ConfigError(f"trainer.v1.trainer_mode={MODE}: {message}")
    return VerlSettings(**given)


def flat_rows(rewards_B: Tensor, groups_B: Sequence[str]) -> Tensor:
    """Which sequences are of a group whose rewards are all equal, up to float32's rounding.

    verl's mean of eight times 0.9 is not 0.9, and GRPO makes an advantage of 0.05 of that.

    Args:
        rewards_B: [B].
        groups_B: the prompt of each sequence, by name (verl's ``uid``).

    Returns:
        bool [B].
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(groups_B))}
    group_B = torch.tensor([names[name] for name in groups_B], dtype=torch.int64)
    rewards_B = rewards_B.float().cpu()
    shape = (len(names),)
    low = rewards_B.new_full(shape, torch.inf).scatter_reduce(0, group_B, rewards_B, "amin")
    high = rewards_B.new_full(shape, -torch.inf).scatter_reduce(0, group_B, rewards_B, "amax")
    return flat_groups(low, high)[group_B]


def choose_tokens(
    entropies_T: Tensor,
    mask_T: Tensor,
    advantages_T: Tensor,
    flat_T: Tensor,
    keep_fraction: float,
) -> tuple[Tensor, dict[str, float]]:
    """``select_tokens`` among those of a step from which something can be learned.

    These are the tokens of the mask whose advantage is not 0 and whose group is not flat.

    Args:
        entropies_T: nats, of every response of the step laid end to end, before its first update.
        mask_T: verl's ``response_mask``: 0 for padding, and what a tool wrote or was rejected.
        flat_T: bool, of ``flat_rows``.

    Returns:
        The choice, bool [T], and numbers for verl's metrics.

    Raises:
        SelectionError: an entropy that competes is not finite.
    """
    competing_T = (mask_T != 0) & (advantages_T != 0) & ~flat_T
    chosen_T = select_tokens(entropies_T, competing_T, keep_fraction)
    kept = entropies_T[chosen_T].float()
    numbers = {
        "selection/pool_tokens": float(competing_T.sum()),
        "selection/kept_tokens": float(len(kept)),
        "selection/pool_share": float(competing_T.sum()) / max(1.0, float((mask_T != 0).sum())),
    }
    if len(kept):
        numbers["selection/threshold_nats"] = float(kept.min())
        numbers["loss/entropy_mean_kept"] = float(kept.mean())
    return chosen_T, numbers


def loss_fields(
    chosen_T: Tensor, mask_T: Tensor, advantages_T: Tensor, offsets: Tensor, denominator: str
) -> dict[str, Tensor]:
    """The fields of verl's batch that make its loss that of the chosen tokens.

    ``all`` changes ``advantages``. ``selected`` changes ``response_mask``, which verl's loss adds
    up over, and ``loss_mask``, which its engine counts over mini-batch and ranks for token-mean. A
    count of 0 would make that mini-batch's loss 0 / 0: the first token of each sequence without a
    chosen one counts 2^-40, which float32 loses beside any token.

    Args:
        offsets: int64 [B + 1], where each sequence begins; none is empty.

    Returns:
        [T] each, by verl's names.
    """
    if denominator == "all":
        return {"advantages": advantages_T * chosen_T}
    counted_T = chosen_T.float()
    before = torch.cat([chosen_T.new_zeros(1, dtype=torch.int64), chosen_T.long().cumsum(0)])
    empty_B = before[offsets[1:]] == before[offsets[:-1]]
    counted_T[offsets[:-1][empty_B]] = NOTHING
    return {"response_mask": chosen_T.to(mask_T.dtype), "loss_mask": counted_T}


def register() -> None:
    """Make ``trainer.v1.trainer_mode=forkpoint`` known to verl, and say so in its log.

    Raises:
        ConfigError: verl is missing, or not of a version that the trainer was made for.
    """
    check_version("verl", "0.9.1", "0.10")
    from verl.trainer.ppo.v1.trainer_base import register_trainer  # pyright: ignore[reportMissingImports]

    from forkpoint.integrations.verl_trainer import ForkingPPOTrainer

    register_trainer(MODE)(ForkingPPOTrainer)
    log.setLevel(logging.INFO)
    log.info("forkpoint: trainer.v1.trainer_mode=%s is registered with verl", MODE)
