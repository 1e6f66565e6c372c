"""TRL's GRPO on the forks: chosen exactly, divided by their number, and nothing else computed.

    from forkpoint.integrations.trl import ForkingGRPOConfig, ForkingGRPOTrainer

take the places of ``GRPOConfig`` and ``GRPOTrainer``. TRL's own ``top_entropy_quantile`` cuts each
micro-batch by its own quantile and multiplies the rest by zero. Here

* the tokens compete within the whole generation batch, over all processes, by the entropies of the
  policy before its first update: exactly ceil(keep_fraction n) of those with an advantage that is
  not zero;
* a loss is divided by the tokens that were selected for its update, over all processes and
  accumulation steps, so that it does not depend on the size of a micro-batch;
* sequences without a selected token are not run, the others no further than their last one, and the
  language-model head on selected tokens alone.

What TRL's trainer does besides is left to it: generation, rewards, advantages, the objective
(``loss_type`` ``dapo`` or ``cispo``), KL penalty, importance weights of vLLM, logging.
"""

import functools
import types
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from forkpoint.config.stages import SelectionConfig
from forkpoint.errors import ConfigError, NumericalError
from forkpoint.integrations.flat import flat_groups
from forkpoint.integrations.trl_files import (
    OUR_NAMES,
    check_not_ours,
    forget_later_steps,
    stored_completions,
)
from forkpoint.integrations.versions import check_version
from forkpoint.policy.head import head_of
from forkpoint.runs.completions import write_completions
from forkpoint.runs.directory import RunDirectory
from forkpoint.runs.metrics_log import MetricsLog
from forkpoint.selection import Candidates
from forkpoint.selection.names import BY_ENERGY, rules_in
from forkpoint.selection.rules import rules_of
from forkpoint.selection.scopes import weigh

check_version("trl", "1.16", "1.17")

from trl.models.utils import disable_gradient_checkpointing  # noqa: E402
from trl.trainer.grpo_config import GRPOConfig  # noqa: E402
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402
from trl.trainer.utils import FusedCausalLMOutput  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

LOSS_TYPES = ("dapo", "cispo")
"""Those that divide a sum over tokens by a number of tokens."""

OF_TOKENS = ("old_per_token_logps", "ref_per_token_logps")
"""Log-probabilities of every token, where the policy's own are 0 for those that were not scored."""

NOT_HERE = BY_ENERGY | {"threshold"}
"""Rules that read more than entropies, advantages and log-probabilities."""

OVERRIDDEN = (
    "_generate_and_score_completions",
    "_calculate_rewards",
    "_prepare_inputs",
    "_compute_loss",
    "_get_per_token_logps_and_entropies",
    "log",
)
"""The methods of TRL's trainer that are extended here."""


@dataclass
class ForkingGRPOConfig(GRPOConfig):
    """``GRPOConfig`` with what is trained on."""

    keep_fraction: float = field(
        default=0.2,
        metadata={"help": "Share of the tokens with a gradient, those of highest entropy."},
    )
    rule: str = field(
        default="top",
        metadata={"help": "A rule of forkpoint's selection, such as top, random, bottom, all."},
    )
    denominator: str = field(
        default="selected",
        metadata={"help": "selected: tokens selected for the update; all: TRL's own."},
    )
    keep_completions: bool = field(
        default=True,
        metadata={
            "help": "Write every completion where `forkpoint report OUTPUT_DIR` reads it; with "
            "push_to_hub they are uploaded as well."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = {
            "top_entropy_quantile is keep_fraction here": self.top_entropy_quantile != 1.0,
            f"loss_type is one of {', '.join(LOSS_TYPES)}": self.loss_type not in LOSS_TYPES,
            "importance_sampling_level is 'token': a ratio of whole sequences needs all their "
            "tokens": self.importance_sampling_level != "token",
            "off_policy_mask_threshold needs every token of a sequence": (
                self.off_policy_mask_threshold is not None
            ),
            "denominator is 'selected' or 'all'": self.denominator not in ("selected", "all"),
            "keep_fraction is above 0 and at most 1": not 0 < self.keep_fraction <= 1,
            "an entropy bonus is a mean over a micro-batch, whose size would change the result": (
                self.entropy_coef != 0 or self.use_adaptive_entropy
            ),
            f"the rule {self.rule} reads what TRL does not give": not NOT_HERE.isdisjoint(
                rules_in(self.rule)
            ),
            "steps_per_generation is a multiple of gradient_accumulation_steps: an update is "
            "divided by its own tokens, which must be known when it begins": (
                (self.steps_per_generation or 1) % self.gradient_accumulation_steps != 0
            ),
        }
        for message, is_wrong in wrong.items():
            if is_wrong:
                raise ConfigError(f"ForkingGRPOConfig: {message}")
        rules_of(self.selection)

    @property
    def selection(self) -> SelectionConfig:
        """The rule, as forkpoint's selection."""
        return SelectionConfig(rule=self.rule, keep_fraction=self.keep_fraction)


class ForkingGRPOTrainer(GRPOTrainer):
    """``GRPOTrainer`` that trains on selected tokens; its ``args`` are a ``ForkingGRPOConfig``.

    Raises:
        ConfigError: the arguments are not, or the model has pictures or a router's loss.
    """

    # TRL's own attributes, whose declared types are wider than what they hold here.
    args: Any
    model: Any
    accelerator: Any
    _tokenizer: Any
    _buffered_inputs: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, ForkingGRPOConfig):
            raise ConfigError("ForkingGRPOTrainer: args must be a ForkingGRPOConfig")
        if self._is_vlm or self.aux_loss_enabled:
            raise ConfigError(
                "ForkingGRPOTrainer trains text models without a loss on routing: for others use "
                "GRPOTrainer"
            )
        self._entropies: Tensor | None = None
        self._wanted: Tensor | None = None
        self._rewards, self._lengths = torch.zeros(0), [0]
        self._begun = False
        model = self.accelerator.unwrap_model(self.model)
        _run_head_on_labels(
            model.get_base_model() if hasattr(model, "get_base_model") else model, self.temperature
        )
        self._directory = RunDirectory(Path(str(self.args.output_dir)))
        check_not_ours(self._directory)

    # ---- choosing --------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._entropies = None
        output = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        if output["advantages"].dim() != 1:
            raise ConfigError("ForkingGRPOTrainer: a subclass gave each token its own advantage")
        output = output | {"advantages": self._without_rounding(output["advantages"])}
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        if self._entropies is None or "old_per_token_logps" not in output:
            ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
            attention = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
            with (
                torch.no_grad(),
                disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            ):
                logps, self._entropies, _ = super()._get_per_token_logps_and_entropies(
                    *(self.model, ids, attention, mask.shape[1]),
                    batch_size=self.args.per_device_train_batch_size,
                    compute_entropy=True,
                )
        else:
            logps = output["old_per_token_logps"]
        assert self._entropies is not None
        weights = self._choose(mask, output["advantages"], self._entropies, logps)
        if self.args.keep_completions:
            self._write(output, logps, self._entropies, weights)
        return output | {"selection_weights": weights}

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        found = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewards, self._lengths = found, [len(ids) for ids in completion_ids_list]
        return found

    def _without_rounding(self, advantages: Tensor) -> Tensor:
        """0 where all rewards of a group are equal: TRL's mean of eight times 0.9 is not 0.9, and
        tokens whose advantage is rounding would compete for places."""
        if self.multi_objective_aggregation != "sum_then_normalize":
            return advantages
        size: Any = self.num_generations
        weights = self.reward_weights.to(self._rewards.device)
        groups = (self._rewards * weights).nansum(1).view(-1, size)
        flat = flat_groups(groups.amin(1), groups.amax(1))
        first = self.accelerator.process_index * len(advantages)
        own = flat.repeat_interleave(size)[first : first + len(advantages)]
        return advantages.masked_fill(own.to(advantages.device), 0.0)

    def _choose(self, mask: Tensor, advantages: Tensor, entropies: Tensor, logps: Tensor) -> Tensor:
        """The weights of this process's tokens, float32 [B, L]; all processes choose together."""
        pool = (mask != 0) & (advantages != 0)[:, None]
        numbers = torch.stack([entropies.float(), logps.float(), pool.float()], dim=-1)
        padded = self.accelerator.pad_across_processes(numbers, dim=1)
        rows = len(padded)
        every = self.accelerator.gather(padded)
        worth = self.accelerator.gather(advantages)
        places = (every[..., 2] != 0).nonzero()
        if not every[..., 0][every[..., 2] != 0].isfinite().all():
            raise NumericalError("the model's entropies are not finite")
        found = every.new_zeros(every.shape[:2])
        if len(places):
            row, column = places.unbind(1)
            candidates = Candidates(
                entropies_N=every[row, column, 0],
                sequence_ids_N=row,
                positions_N=column,
                advantages_N=worth[row],
                logprobs_N=every[row, column, 1],
                keep_fraction=self.args.keep_fraction,
                seed=self.args.seed,
                step=self.state.global_step,
            )
            found[row, column] = weigh(candidates, self.args.selection)
        kept = found > 0
        metrics = self._metrics["train"]
        metrics["selection/pool_tokens"].append(float(len(places)))
        metrics["selection/kept_fraction"].append(float(kept.sum()) / max(1, len(places)))
        if kept.any():
            metrics["loss/entropy_mean_kept"].append(float(every[..., 0][kept].mean()))
            metrics["selection/threshold_nats"].append(float(every[..., 0][kept].min()))
        first = self.accelerator.process_index * rows
        return found[first : first + rows, : mask.shape[1]]

    # ---- training --------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training and self._buffered_inputs is not before:
            self._count(self._buffered_inputs)
        return inputs

    def _count(self, micro_batches: list[dict[str, Any]]) -> None:
        """Let every micro-batch know the tokens that its update is divided by."""
        if self.args.denominator == "all":
            return
        window = self.args.gradient_accumulation_steps
        for start in range(0, len(micro_batches), window):
            update = micro_batches[start : start + window]
            here = torch.stack([one["selection_weights"].sum() for one in update]).sum()
            total = self.accelerator.reduce(here, reduction="sum")
            for one in update:
                # TRL takes it for the generation batch's and divides it by its number of updates
                one["num_items_in_batch"] = total * self.args.steps_per_generation / window

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        weights = inputs.get("selection_weights")
        if weights is None:  # of an evaluation
            return super()._compute_loss(model, inputs)
        self._metrics["train"]["work/rows_run"].append(float((weights > 0).any(1).sum()))
        # What is not a model's own token is masked by TRL in the same way; ratios are made of all.
        own = {name: inputs[name].where(weights > 0, 0.0) for name in OF_TOKENS if name in inputs}
        with self._scoring_only(weights > 0):
            return super()._compute_loss(model, inputs | own | {"tool_mask": weights})

    @contextmanager
    def _scoring_only(self, wanted: Tensor) -> "Iterator[None]":
        self._wanted = wanted
        try:
            yield
        finally:
            self._wanted = None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        **kwargs: Any,
    ) -> Any:
        if self._wanted is not None:
            return (*self._score(model, input_ids, attention_mask, self._wanted), None)
        every = super()._get_per_token_logps_and_entropies
        old = self._entropies is None and model is self.model and self.model.training
        if not old or kwargs.get("compute_entropy"):
            return every(model, input_ids, attention_mask, logits_to_keep, **kwargs)
        # The pass for old log-probabilities: the entropies come with it.
        found = every(
            *(model, input_ids, attention_mask, logits_to_keep), **kwargs, compute_entropy=True
        )
        self._entropies = found[1]
        return found

    def _score(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ln p and H of the wanted tokens, [B, L]; 0 elsewhere. Other rows are not run."""
        prompt = input_ids.shape[1] - wanted.shape[1]
        rows = wanted.any(1).nonzero().flatten()
        end = int(wanted.any(0).nonzero().max()) + 1 if len(rows) else 1
        if not len(rows):
            rows = rows.new_zeros(1)  # every process runs the model, to add up gradients together
        ids, attention = input_ids[rows, : prompt + end], attention_mask[rows, : prompt + end]
        labels = torch.full_like(ids, -100)
        labels[:, prompt:] = torch.where(wanted[rows, :end], ids[:, prompt:], -100)
        with self.accelerator.autocast():
            output = model(
                input_ids=ids, attention_mask=attention, labels=labels, fused_lm_head=True
            )
        whole = output.log_probs.new_zeros(wanted.shape)
        found = []
        for part in (output.log_probs, output.entropy):
            placed = whole.clone()
            placed[rows, :end] = part[:, -end:]
            found.append(placed)
        return found[0], found[1]

    # ---- what is written -------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's, and a line of metrics.jsonl for ``forkpoint report``."""
        super().log(logs, start_time)
        if self.is_world_process_zero() and self.args.keep_completions:
            numbers = {k: float(v) for k, v in logs.items() if isinstance(v, int | float)}
            named = {OUR_NAMES.get(name, name): value for name, value in numbers.items()}
            MetricsLog(self._directory.metrics_jsonl).append(
                {"step": self.state.global_step, **named}
            )

    def _write(self, output: Any, logps: Tensor, entropies: Tensor, weights: Tensor) -> None:
        """This process's completions, as a step of a run directory."""
        if not self._begun:
            self._begun = True
            if self.is_world_process_zero():
                forget_later_steps(self._directory, self.state.global_step)
            self.accelerator.wait_for_everyone()
        step, process = self.state.global_step + 1, self.accelerator.process_index
        folder = self._directory.completions_dir("train")
        folder.mkdir(parents=True, exist_ok=True)
        name = f"step_{step:05d}" + (f"_process_{process}" if process else "")
        rows = stored_completions(self, output, logps, entropies, weights, step=step)
        write_completions(folder / f"{name}.parquet", rows)


def _run_head_on_labels(model: Any, temperature: float) -> None:
    """Where TRL's fused head would score every position, score those that have a label.

    TRL does so itself on devices with Triton. Elsewhere, as on a CPU, its head runs on all of them.
    """
    theirs = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        labels = kwargs.get("labels")
        layer = self.get_output_embeddings()
        plain = not isinstance(layer.weight, DTensor) and not hasattr(layer, "base_layer")
        simple = plain and layer.weight.device.type == "cpu"
        if not kwargs.get("fused_lm_head") or labels is None or not simple:
            return theirs(*args, **kwargs)
        inputs = {k: v for k, v in kwargs.items() if k not in ("labels", "fused_lm_head")}
        hidden = self.base_model(*args, **inputs, use_cache=False).last_hidden_state[:, :-1]
        labels = labels[:, 1:]
        mask = labels != -100
        logps, entropies, _ = head_of(self).stats(hidden[mask], labels[mask], temperature)
        nothing = logps.new_zeros(mask.shape)
        return FusedCausalLMOutput(
            # connected to the model where no position has a label
            log_probs=nothing.masked_scatter(mask, logps) + 0.0 * hidden.sum(),
            entropy=nothing.masked_scatter(mask, entropies),
            label_mask=mask,
        )

    model.forward = types.MethodType(forward, model)
