"""How verl finds our trainer, what the trainer relies on, and what it refuses."""

import inspect
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

import transfer_queue as tq
from verl.trainer.main_ppo import need_critic, need_reference_policy, validate_config
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from forkpoint.errors import ConfigError
from forkpoint.integrations import verl as integration
from forkpoint.integrations import verl_plugin, versions
from forkpoint.integrations.verl_trainer import FIELDS, ForkingPPOTrainer
from tests.verl.runs import composed

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "examples" / "verl" / "qwen3_14b_paper.sh"
ACTOR = "actor_rollout_ref.actor"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


# ---- found ---------------------------------------------------------------------------------------


def test_the_entry_point_is_installed() -> None:
    (found,) = (one for one in entry_points(group="verl.plugins") if one.name == "forkpoint")
    assert found.load() is verl_plugin


def test_verl_finds_the_trainer_by_itself_and_says_so() -> None:
    done = python(
        "from verl.trainer.ppo.v1 import get_trainer_cls\nprint(get_trainer_cls('forkpoint'))"
    )
    assert done.stdout.strip() == str(ForkingPPOTrainer)
    lines = [line for line in done.stderr.splitlines() if "forkpoint" in line]
    assert len(lines) == 1
    assert lines[0].endswith("trainer.v1.trainer_mode=forkpoint is registered with verl")


def test_importing_verl_alone_loads_no_trainer() -> None:
    done = python("import sys, verl\nprint([m for m in sys.modules if 'forkpoint' in m])")
    found = done.stdout
    assert "verl_plugin" in found
    assert "verl_trainer" not in found
    assert "selection" not in found


def test_a_verl_it_was_not_made_for_is_named_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(versions, "version", lambda package: "0.10.0")
    with pytest.raises(ConfigError, match=r"pip install 'verl>=0.9.1,<0.10'"):
        integration.register()
    verl_plugin.register_or_say_why_not()
    assert "trainer.v1.trainer_mode=forkpoint is not there: verl 0.10.0" in caplog.text


# ---- relied on -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (PPOTrainerSync.__init__, ["self", "config"]),
        (PPOTrainerSync._build_replay_buffer, ["self"]),
        (PPOTrainerSync._update_actor, ["self", "batch", "metrics"]),
        (trainer_base.register_trainer, ["name"]),
        (tq.kv_batch_get, ["keys", "partition_id", "select_fields"]),
        (tq.kv_batch_put, ["keys", "partition_id", "fields"]),
    ],
)
def test_what_is_extended_and_called_has_the_parameters(function: Any, parameters: Any) -> None:
    assert list(inspect.signature(function).parameters)[: len(parameters)] == parameters


def test_entropies_are_of_the_pass_before_the_advantages_and_the_update() -> None:
    step = inspect.getsource(trainer_base.PPOTrainer._step_once)
    calls = re.findall(r"self\.(_compute_old_log_prob|_compute_advantage|_update_actor)\(", step)
    assert calls == ["_compute_old_log_prob", "_compute_advantage", "_update_actor"]
    old = inspect.getsource(trainer_base.PPOTrainer._compute_old_log_prob)
    assert '"calculate_entropy": True' in old
    assert 'data.select("old_log_probs", "entropy")' in old
    assert "entropy" in FIELDS


def test_every_policy_loss_of_verls_is_taken_or_refused() -> None:
    refused = {"gspo", "clip_cov", "kl_cov", "geo_mean", "dro", "bypass_mode"}
    assert set(core_algos.POLICY_LOSS_REGISTRY) == refused | set(integration.TOKEN_LOSSES)


@pytest.mark.parametrize("name", integration.TOKEN_LOSSES)
def test_taken_losses_have_no_gradient_where_the_advantage_is_0(name: str) -> None:
    from verl.utils.config import omega_conf_to_dataclass

    config = omega_conf_to_dataclass(
        composed(f"{ACTOR}.ppo_mini_batch_size=2", *RUNS).actor_rollout_ref.actor
    )
    old = -torch.rand(3, 5, generator=torch.Generator().manual_seed(1))
    new = (old + 0.05).requires_grad_()
    advantages = torch.ones(3, 5)
    advantages[:, ::2] = 0.0
    loss, _ = core_algos.get_policy_loss_fn(name)(
        old_log_prob=old,
        log_prob=new,
        advantages=advantages,
        response_mask=torch.ones(3, 5),
        loss_agg_mode="token-mean",
        config=config,
        rollout_is_weights=None,
    )
    (gradient,) = torch.autograd.grad(loss, new)
    assert not gradient[:, ::2].any()
    assert gradient[:, 1::2].all()


def test_verls_own_advantage_of_a_flat_group_is_rounding_and_not_0() -> None:
    assert set(integration.GROUP_RELATIVE) <= {one.value for one in core_algos.AdvantageEstimator}
    rewards = torch.zeros(10, 3)
    rewards[:, -1] = torch.tensor([0.9] * 8 + [0.0, 1.0])
    groups = ["flat"] * 8 + ["other"] * 2
    advantages, _ = core_algos.compute_grpo_outcome_advantage(
        rewards, torch.ones(10, 3), np.array(groups)
    )
    assert advantages[:8].any()
    assert integration.flat_rows(rewards.sum(1), groups).tolist() == [True] * 8 + [False] * 2


# ---- refused -------------------------------------------------------------------------------------

RUNS = ("actor_rollout_ref.rollout.name=vllm", f"{ACTOR}.use_dynamic_bsz=True")


def test_settings_are_read_and_have_defaults() -> None:
    settings = integration.read_settings(composed(*RUNS))
    assert (settings.keep_fraction, settings.denominator) == (0.2, "selected")
    given = ("+trainer.v1.forkpoint.keep_fraction=0.5", "+trainer.v1.forkpoint.denominator=all")
    settings = integration.read_settings(composed(*RUNS, *given))
    assert (settings.keep_fraction, settings.denominator) == (0.5, "all")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+trainer.v1.forkpoint.fraction=0.5"], "trainer.v1.forkpoint.fraction is no setting"),
        (["+trainer.v1.forkpoint.keep_fraction=20"], "above 0, at most 1"),
        (["+trainer.v1.forkpoint.denominator=sequence"], "one of selected, all"),
        (["model_engine=megatron"], "strategy=megatron: fsdp or fsdp2"),
        (["actor_rollout_ref.model.use_fused_kernels=True"], "rounds entropies to bfloat16"),
        (["algorithm.rollout_correction.bypass_mode=True"], "where the entropies come from"),
        ([f"{ACTOR}.policy_loss.loss_mode=gspo"], "loss_mode=gspo looks at more"),
        ([f"{ACTOR}.loss_agg_mode=seq-mean-token-sum-norm"], "set loss_scale_factor"),
        (["distillation.enabled=True"], "a loss of its own"),
    ],
)
def test_what_would_not_be_what_it_says_is_refused(overrides: list[str], message: str) -> None:
    config = composed("trainer.v1.trainer_mode=forkpoint", *RUNS, *overrides)
    with pytest.raises(ConfigError, match=re.escape(message)):
        ForkingPPOTrainer(config)


# ---- the recipe ----------------------------------------------------------------------------------


def recipe() -> list[str]:
    """The settings in the script, as its shell would pass them."""
    text = RECIPE.read_text(encoding="utf-8").partition("verl.trainer.main_ppo")[2]
    words = shlex.split(text.replace("\\\n", " "))
    return [re.sub(r"\$\{(\w+):[^}]*\}", r"\1.parquet", word) for word in words if word != "$@"]


def test_the_recipe_has_only_settings_of_verls_and_ours() -> None:
    # hydra refuses a name that verl's files do not have, unless it begins with a plus
    added = {word.split("=")[0] for word in recipe() if word.startswith("+")}
    places = ("+trainer.v1.forkpoint.", "+reward.reward_kwargs.")
    assert all(name.startswith(places) for name in added)
    config = composed(*recipe())
    settings = integration.read_settings(config)
    assert (settings.keep_fraction, settings.denominator) == (0.2, "selected")
    reader = (Path(trainer_base.__file__).parents[3] / "experimental/reward_loop").rglob("dapo.py")
    code = "".join(path.read_text(encoding="utf-8") for path in reader)
    for name in added:
        if name.startswith("+reward"):
            assert name.rsplit(".", 1)[1] in code, name
    # verl's own check of numbers that go together
    validate_config(config, need_reference_policy(config), need_critic(config))


def test_the_recipe_is_the_paper_recipe_of_forkpoint() -> None:
    from forkpoint.config.load import load_config

    ours, theirs = load_config("qwen3_14b_paper"), composed(*recipe())
    actor, rollout = theirs.actor_rollout_ref.actor, theirs.actor_rollout_ref.rollout
    buffer = theirs.reward.reward_kwargs.overlong_buffer_cfg
    assert theirs.actor_rollout_ref.model.path == ours.model.path
    assert theirs.data.train_batch_size == ours.rollout.prompts_per_step
    assert rollout.n == ours.rollout.group_size
    assert theirs.data.train_batch_size // actor.ppo_mini_batch_size == ours.training.mini_batches
    assert rollout.response_length == ours.rollout.max_new_tokens
    assert rollout.temperature == ours.rollout.temperature
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (
        ours.loss.clip_low,
        ours.loss.clip_high,
    )
    assert theirs.trainer.v1.forkpoint.keep_fraction == ours.selection.keep_fraction
    assert theirs.trainer.v1.forkpoint.denominator == ours.loss.denominator
    assert (buffer.len, buffer.penalty_factor) == (ours.overlong.buffer, ours.overlong.penalty)
    assert (actor.optim.lr, actor.optim.weight_decay) == (ours.optim.lr, ours.optim.weight_decay)
    assert theirs.trainer.total_training_steps == ours.training.steps
