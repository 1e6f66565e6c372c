"""TRL's trainer on the forks: against stock TRL, against our own step, over processes."""

import inspect
import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from forkpoint.batching.batch import lay_out
from forkpoint.config import parse_config
from forkpoint.errors import ConfigError
from forkpoint.integrations.versions import check_version
from forkpoint.policy import PolicyModule
from forkpoint.runs.completions import StoredCompletion, read_completions
from forkpoint.training.step import train_step
from tests.trl_runs import PROMPTS, SIZE, run

pytest.importorskip("trl")

from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from forkpoint.integrations.trl import (
    OVERRIDDEN,
    ForkingGRPOConfig,
    ForkingGRPOTrainer,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func'"),
]


def ours(folder: Path, **settings: Any) -> tuple[Any, dict[str, torch.Tensor], list[torch.Tensor]]:
    return run(folder, ForkingGRPOTrainer, ForkingGRPOConfig, **settings)


def stock(folder: Path, **settings: Any) -> tuple[Any, dict[str, torch.Tensor], list[torch.Tensor]]:
    return run(folder, GRPOTrainer, GRPOConfig, **settings)


def chosen_of(row: StoredCompletion) -> list[bool]:
    assert row.selected is not None
    return [bool(one) for one in row.selected]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_a_run_of_forkpoint_train_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(parse_config({}).model_dump_json())
    with pytest.raises(ConfigError, match=r"output_dir = .* is a run of forkpoint train"):
        ours(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')  # a model's
    ours(tmp_path)


def test_an_unlikely_token_that_is_not_selected_does_no_harm(tmp_path: Path) -> None:
    """exp(-ln p) of it is infinite, and infinity times its weight of 0 no number."""
    trainer, weights, gradients = ours(
        tmp_path, num_iterations=2, steps=2, temperature=0.05, learning_rate=1e-7
    )
    logps = trainer._buffered_inputs[0]["old_per_token_logps"]
    assert logps.min() < -89
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(weight.isfinite().all() for weight in weights.values())


SAME: list[dict[str, Any]] = [
    {},
    {"loss_type": "cispo", "epsilon_high": 5.0},
    {"num_iterations": 2, "steps": 4},
    {"beta": 0.1, "num_iterations": 2, "steps": 3, "rule": "all", "flat": False},
    {"mask_truncated_completions": True},
    {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "steps": 4},
]


@pytest.mark.parametrize("settings", SAME, ids=lambda s: "-".join(map(str, s)) or "plain")
def test_with_every_token_it_is_stock_trl(tmp_path: Path, settings: dict[str, Any]) -> None:
    # A KL penalty acts on tokens of flat groups too, which are no part of the pool: none is flat.
    settings = dict(settings)
    rule = settings.pop("rule", "top")
    if not settings.pop("flat", True):
        settings["reward"] = lengths
    theirs = stock(tmp_path / "stock", **settings)
    mine = ours(tmp_path / "ours", keep_fraction=1.0, denominator="all", rule=rule, **settings)
    assert len(mine[2]) == len(theirs[2]) == settings.get("steps", 1)
    for a, b in zip(mine[2], theirs[2], strict=True):
        assert b.norm() > 0.1
        assert relative(a, b) < 1e-4
    for name, weights in theirs[1].items():
        torch.testing.assert_close(mine[1][name], weights, rtol=0, atol=2e-4)


def lengths(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(text) % 7) for text in completions]


@pytest.mark.parametrize("keep_fraction", [0.2, 0.5])
def test_gradient_is_that_of_our_own_step(tmp_path: Path, keep_fraction: float) -> None:
    trainer, _, gradients = ours(tmp_path, keep_fraction=keep_fraction)
    rows = list(read_completions(sorted((tmp_path / "completions" / "train").glob("*"))))
    assert len(rows) == PROMPTS * SIZE
    _, before, _ = ours(tmp_path / "again", keep_fraction=keep_fraction, learning_rate=0.0)
    model = trainer.model
    model.load_state_dict(before, strict=False)
    model.eval()
    batch = lay_out(
        [torch.tensor(row.prompt_token_ids) for row in rows],
        [torch.tensor(row.completion.token_ids.tolist()) for row in rows],
        list(range(len(rows))),
    )
    advantages_T = torch.tensor([row.advantage for row in rows])[batch.sequence_T]
    batch = batch.with_streams(advantages_T=advantages_T, pool_T=advantages_T != 0)
    config = parse_config(
        {
            "selection": {"keep_fraction": keep_fraction, "entropy": "old"},
            "loss": {"importance_cap": "none"},
            "training": {"mini_batches": 1},
        }
    )
    policy = PolicyModule(model, gradient="dense", temperature=1.0)
    held: list[torch.Tensor] = []

    class Keep:
        lr, updates = 0.0, 0

        def step(self) -> float:
            flat = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            held.append(torch.cat(flat).clone())
            return 1.0

    for parameter in model.parameters():
        parameter.grad = None
    keep: Any = Keep()
    result = train_step(policy, keep, batch, config, step=1, same_weights=False)
    selected = torch.tensor([one for row in rows for one in chosen_of(row)])
    assert result.batch.weights_T is not None
    assert torch.equal(result.batch.weights_T > 0, selected)
    assert relative(gradients[0], held[0]) < 1e-4


@pytest.mark.parametrize("batch_size", [2, 8, 16])
def test_the_size_of_a_micro_batch_changes_stock_and_not_ours(
    tmp_path: Path, batch_size: int
) -> None:
    cut = {
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": PROMPTS * SIZE // batch_size,
    }
    reference, other = ours(tmp_path / "a")[2][0], ours(tmp_path / "b", **cut)[2][0]
    assert relative(other, reference) < 1e-4
    masked = {"top_entropy_quantile": 0.2}
    reference = stock(tmp_path / "c", **masked)[2][0]
    other = stock(tmp_path / "d", **masked, **cut)[2][0]
    assert relative(other, reference) > 0.05


def test_exactly_k_of_all_tokens_that_count(tmp_path: Path) -> None:
    trainer, _, _ = ours(tmp_path)
    rows = list(read_completions(sorted((tmp_path / "completions" / "train").glob("*"))))
    pool = [
        pair
        for row in rows
        if row.advantage and row.completion.entropies is not None
        for pair in zip(row.completion.entropies.tolist(), chosen_of(row), strict=True)
    ]
    k = math.ceil(Fraction(1, 5) * len(pool))
    assert sum(bool(t) for _, t in pool) == k
    assert min(e for e, t in pool if t) >= max(e for e, t in pool if not t)
    flat = [row for row in rows if not row.advantage]
    assert flat  # the first prompt's group
    assert not any(any(chosen_of(row)) for row in flat)
    line = trainer.state.log_history[0]
    assert line["selection/pool_tokens"] == len(pool)
    assert line["selection/kept_fraction"] == pytest.approx(k / len(pool))
    # sequences of flat groups are not run at all
    assert line["work/rows_run"] < 4


def test_what_it_writes_is_a_run_directory(tmp_path: Path) -> None:
    _, weights, _ = ours(tmp_path, steps=2)
    assert weights
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[:2]] == [1, 2]
    assert {"reward/mean", "selection/kept_fraction", "grad/norm"} <= lines[0].keys()
    page = tmp_path / "page.html"
    command = ["report", str(tmp_path), "--out", str(page)]
    subprocess.run([sys.executable, "-m", "forkpoint", *command], check=True, capture_output=True)
    assert "selection" in page.read_text().lower()


def test_rewards_that_are_equal_but_for_rounding_are_a_flat_group(tmp_path: Path) -> None:
    """TRL's float32 mean of equal rewards of 0.9 differs from 0.9, and so do its advantages."""

    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        return [
            0.9 if prompt == prompts[0] else float(len(str(text)) % 3 == 0)
            for prompt, text in zip(prompts, completions, strict=True)
        ]

    ours(
        tmp_path,
        reward=reward,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=1,
        num_generations=8,
        generation_batch_size=16,
    )
    rows = list(read_completions(sorted((tmp_path / "completions" / "train").glob("*"))))
    flat = [row for row in rows if row.score.reward == pytest.approx(0.9)]
    assert len(flat) == 8
    assert all(row.advantage == 0.0 and not any(chosen_of(row)) for row in flat)
    assert any(any(chosen_of(row)) for row in rows)


def test_rewards_of_one_name_and_answers_that_are_masked(tmp_path: Path) -> None:
    def first(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(text) % 2) for text in completions]

    def second(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(text) % 5) for text in completions]

    second.__name__ = "first"
    ours(tmp_path, reward=[first, second], mask_truncated_completions=True, max_completion_length=3)
    rows = list(read_completions(sorted((tmp_path / "completions" / "train").glob("*"))))
    assert all(set(row.score.parts) == {"first", "first_2"} for row in rows)
    assert all(len(row.completion) and row.completion.text for row in rows)


def test_a_second_run_in_the_same_folder_replaces_the_first(tmp_path: Path) -> None:
    ours(tmp_path, steps=3)
    ours(tmp_path, steps=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {1}
    files = sorted(path.name for path in (tmp_path / "completions" / "train").glob("*"))
    assert files == ["step_00001.parquet"]


def test_the_entropy_of_selected_tokens_does_not_depend_on_the_cut(tmp_path: Path) -> None:
    found = [
        ours(
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=16 // size,
        )[0].state.log_history[0]["loss/entropy_mean_kept"]
        for size in (4, 16)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Two gloo processes under accelerate choose the same tokens and make the same gradient."""
    alone = ours(tmp_path / "alone", per_device_train_batch_size=8, gradient_accumulation_steps=2)
    script = Path(__file__).with_name("two_processes.py")
    root = Path(__file__).parents[2]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(root / "src"), str(root)]))
    environment["OMP_NUM_THREADS"] = "1"
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--master-port", "29617", str(script), str(tmp_path / "two")),
        ],
        check=True,
        capture_output=True,
        timeout=300,
        env=environment,
        cwd=root,
    )
    found = torch.load(tmp_path / "two" / "found.pt", weights_only=True)
    assert relative(found["gradient"], alone[2][0]) < 1e-4
    line = alone[0].state.log_history[0]
    assert found["kept"] == pytest.approx(line["selection/kept_fraction"])
    assert found["pool"] == line["selection/pool_tokens"]
    files = sorted((tmp_path / "two" / "completions" / "train").glob("*"))
    assert len(files) == 2
    both = list(read_completions(files))
    one = list(read_completions(sorted((tmp_path / "alone" / "completions" / "train").glob("*"))))
    assert [row.serial for row in both] == [row.serial for row in one]
    assert [chosen_of(row) for row in both] == [chosen_of(row) for row in one]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_entropy_quantile": 0.2}, "keep_fraction"),
        ({"loss_type": "grpo"}, "dapo, cispo"),
        ({"importance_sampling_level": "sequence"}, "whole sequences"),
        ({"off_policy_mask_threshold": 0.5}, "every token of a sequence"),
        ({"denominator": "tokens"}, "'selected' or 'all'"),
        ({"rule": "tip"}, "neither a known rule"),
        ({"keep_fraction": 0.0}, "above 0 and at most 1"),
        ({"keep_fraction": 1.5}, "above 0 and at most 1"),
        ({"entropy_coef": 0.1}, "mean over a micro-batch"),
        ({"rule": "top+energy"}, "what TRL does not give"),
        ({"rule": "threshold"}, "what TRL does not give"),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, "multiple of"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ours(tmp_path, **settings)


def test_plain_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ForkingGRPOConfig"):
        run(tmp_path, ForkingGRPOTrainer, GRPOConfig)


def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from forkpoint.integrations import versions

    for found, good in {"1.16.0": True, "1.16.9": True, "1.17.0": False, "1.15.2": False}.items():
        monkeypatch.setattr(versions, "version", lambda _, found=found: found)
        if good:
            check_version("trl", "1.16", "1.17")
        else:
            with pytest.raises(ConfigError, match="pip install"):
                check_version("trl", "1.16", "1.17")


PARAMETERS = {
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_prepare_inputs": ["self", "generation_batch"],
    "_compute_loss": ["self", "model", "inputs"],
    "log": ["self", "logs", "start_time"],
}


def test_the_methods_that_are_extended_are_there() -> None:
    for name in OVERRIDDEN:
        theirs = getattr(GRPOTrainer, name)
        assert getattr(ForkingGRPOTrainer, name) is not theirs
        names = list(inspect.signature(theirs).parameters)
        expected = PARAMETERS.get(
            name, ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]
        )
        assert names[: len(expected)] == expected
    source = inspect.getsource(GRPOTrainer._compute_loss)
    for read in (
        'inputs["tool_mask"]',
        'inputs["num_items_in_batch"]',
        "entropies, aux_loss = self",
    ):
        assert read in source
