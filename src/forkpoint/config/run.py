"""A whole run as one frozen value."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from forkpoint.config import stages
from forkpoint.config.evaluation import EvaluationConfig
from forkpoint.config.presets import apply_presets
from forkpoint.config.rewards import (
    CODE_IS_OFF,
    OverlongConfig,
    RewardConfig,
    ScoringConfig,
    TaskRewardConfig,
)
from forkpoint.config.tracking import TrackingConfig

OF_LOCAL = (
    *("live", "live_fraction", "first_hop"),
    *("keys_gb", "stale_keys", "check_gradient_every"),
)
"""Settings of ``training`` that ``training.gradient = 'local'`` alone reads."""


class RunConfig(stages.Stage):
    """All settings of a run. Presets are resolved: the dump names every value."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    model: stages.ModelConfig = stages.ModelConfig()
    task: stages.TaskConfig = stages.LabTaskConfig()
    rewards: tuple[RewardConfig, ...] = Field(default=(TaskRewardConfig(),), min_length=1)
    scoring: ScoringConfig = ScoringConfig()
    overlong: OverlongConfig = OverlongConfig()
    rollout: stages.RolloutConfig = stages.RolloutConfig()
    advantage: stages.AdvantageConfig = stages.AdvantageConfig()
    selection: stages.SelectionConfig = stages.SelectionConfig()
    loss: stages.LossConfig = stages.LossConfig()
    optim: stages.OptimConfig = stages.OptimConfig()
    training: stages.TrainingConfig = stages.TrainingConfig()
    checkpoint: stages.CheckpointConfig = stages.CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def task_name(self) -> str:
        """See ``name_of_task``."""
        return name_of_task(self.task.model_dump())

    @property
    def held_out_name(self) -> str:
        """Where the held-out problems are from: of a data set the file of these."""
        return getattr(self.task, "eval_path", None) or self.task_name

    @model_validator(mode="before")
    @classmethod
    def _resolve_presets(cls, raw: Any) -> Any:
        return apply_presets(_with_types(raw)) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _check_gradient(self) -> "RunConfig":
        training = self.training
        if training.gradient == "local" and self.model.gradient_checkpointing:
            raise ValueError(
                "training.gradient = 'local' reads a cache of keys and values, which "
                "model.gradient_checkpointing turns off: use one of them"
            )
        fields = type(training).model_fields
        if training.gradient != "local":
            for name in OF_LOCAL:
                if getattr(training, name) != fields[name].default:
                    raise ValueError(f"training.{name} is read by training.gradient = 'local' only")
        for name in ("stale_keys", "keys_gb"):
            if training.first_hop and getattr(training, name) != fields[name].default:
                raise ValueError(
                    f"training.{name} needs training.first_hop = false: with the first hop no keys "
                    "are kept"
                )
        fraction = training.live_fraction
        if training.live in ("forks", "all") and fraction != fields["live_fraction"].default:
            raise ValueError(
                f"training.live_fraction is not read by training.live = {training.live!r}"
            )
        if training.rows == "tree" and training.gradient == "dense":
            raise ValueError("training.rows = 'tree' is read by sparse and local gradients only")
        if training.rows == "padded" and training.gradient == "local":
            raise ValueError("training.rows = 'padded' is no layout of local gradients: use 'auto'")
        return self

    @model_validator(mode="after")
    def _check_what_is_read(self) -> "RunConfig":
        loss = self.loss
        if loss.constant_tokens is not None and loss.denominator != "constant":
            raise ValueError("loss.constant_tokens is read by loss.denominator = 'constant' only")
        return self

    @model_validator(mode="after")
    def _check_combinations(self) -> "RunConfig":
        s, loss, training = self.selection, self.loss, self.training
        by_threshold = "threshold" in s.rule.split("+")
        if by_threshold and s.threshold_nats is None:
            raise ValueError("selection.rule = 'threshold' needs selection.threshold_nats")
        if loss.marked and "threshold" in loss.marked.rule.split("+"):
            raise ValueError("loss.marked.rule = 'threshold' has no threshold_nats: use 'top'")
        if not by_threshold and s.threshold_nats is not None:
            raise ValueError(
                "selection.threshold_nats is read by selection.rule = 'threshold' only"
            )
        if (s.keep_fraction_start is None) != (s.keep_fraction_steps is None):
            raise ValueError(
                "selection.keep_fraction_start and selection.keep_fraction_steps belong together: "
                "where the fraction starts, and the step in which it gets to keep_fraction"
            )
        if loss.marked and loss.marked.kl_coefficient and not loss.kl_coefficient:
            raise ValueError("loss.marked.kl_coefficient needs loss.kl_coefficient above 0")
        if s.entropy == "current" and s.scope == "batch" and training.mini_batches > 1:
            raise ValueError(
                "selection.entropy = 'current' is known one mini-batch at a time: use "
                "selection.scope = 'minibatch', or training.mini_batches = 1"
            )
        if s.scope == "microbatch" and training.micro_batch_sequences is None:
            raise ValueError(
                "selection.scope = 'microbatch' makes the micro-batch part of the method: set "
                "training.micro_batch_sequences"
            )
        if loss.denominator == "microbatch_selected" and s.scope != "microbatch":
            raise ValueError(
                "loss.denominator = 'microbatch_selected' needs selection.scope = 'microbatch'"
            )
        if s.entropy == "rollout" and self.rollout.engine == "vllm":
            raise ValueError(
                "selection.entropy = 'rollout', but vLLM gives no entropies: use 'old' (or 'auto')"
            )
        if self.rollout.lag and self.rollout.engine == "transformers":
            raise ValueError(
                "rollout.lag = 1 needs an engine in another process: rollout.engine = 'vllm'"
            )
        vllm = self.rollout.vllm
        if vllm.servers and vllm.weights_dir is None:
            raise ValueError(
                "rollout.vllm.servers needs rollout.vllm.weights_dir: a folder that they and this "
                "run see"
            )
        if vllm.devices and len(vllm.devices) != vllm.launch:
            raise ValueError(
                f"rollout.vllm.devices names {len(vllm.devices)}, and rollout.vllm.launch is "
                f"{vllm.launch}: one for each server"
            )
        if any(reward.type == "code" for reward in self.rewards) and not self.scoring.allow_code:
            raise ValueError(CODE_IS_OFF)
        if self.overlong.buffer > self.rollout.max_new_tokens:
            raise ValueError("overlong.buffer is larger than rollout.max_new_tokens")
        return self


def name_of_task(task: Mapping[str, Any]) -> str:
    """The gym's name of a task, the file of its problems, or ``lab:walk``."""
    return str(task.get("name") or task.get("path") or f"{task['type']}:{task['world']}")


def _with_types(raw: dict[str, Any]) -> dict[str, Any]:
    """``type`` filled in where it was left out: ``--set task.seed=3`` means the default task, which
    is the world of the laboratory that the model speaks."""
    out = dict(raw)
    if isinstance(task := raw.get("task", {}), dict):
        out["task"] = task = {"type": "lab", **task}
        model = raw.get("model")
        path = model.get("path") if isinstance(model, dict) else None
        if task["type"] == "lab" and isinstance(path, str) and path.startswith("lab:"):
            out["task"] = {"world": path.removeprefix("lab:"), **task}
    if isinstance(rewards := raw.get("rewards"), list):
        out["rewards"] = [{"type": "task", **r} if isinstance(r, dict) else r for r in rewards]
    return out
