"""Numbers that are not finite, and steps that teach nothing: skipped, counted, then the end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from forkpoint.config import RunConfig, parse_config
from forkpoint.errors import NumericalError, SelectionError
from forkpoint.policy.module import PolicyModule
from forkpoint.selection import Candidates
from forkpoint.training import bad_steps, loop
from forkpoint.training.bad_steps import dump_batch
from forkpoint.training.loop import train
from forkpoint.training.metrics import peak_memory
from forkpoint.types import TokenStats
from tests.conftest import make_batch


class Notes:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, metrics: dict[str, float]) -> None: ...


PLUS = {"type": "format", "pattern": r".*n\d \+ .*"}
"""A reward that about half of the completions get, so that groups teach something."""


def small(reward: dict[str, Any] = PLUS, **sections: dict[str, Any]) -> RunConfig:
    raw: dict[str, Any] = {
        "rewards": [reward],
        "rollout": {"prompts_per_step": 3, "group_size": 4, "max_new_tokens": 40, "max_rounds": 1},
        "training": {"steps": 4, "mini_batches": 1, "max_bad_steps": 2, "threads": 1},
        "checkpoint": {"every": 1},
    }
    for name, settings in sections.items():
        raw[name] = {**raw.get(name, {}), **settings}
    return parse_config(raw)


def metrics(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]


def weights(root: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(root / "checkpoints" / f"step_{step:05d}" / "model.safetensors")


def spoil(monkeypatch: pytest.MonkeyPatch, in_calls: set[int], *, where: str) -> None:
    """Make the policy's statistics (or only their gradient) not finite in some of its calls
    with gradient."""
    original = PolicyModule.forward
    calls = 0

    def forward(self: PolicyModule, *arguments: Any, **named: Any) -> TokenStats:
        nonlocal calls
        stats = original(self, *arguments, **named)
        if not torch.is_grad_enabled():
            return stats
        calls += 1
        if calls not in in_calls:
            return stats
        if where == "loss":
            bad = stats.logprobs_R * float("nan")
        else:
            bad = stats.logprobs_R.clone()
            bad.register_hook(lambda gradient: gradient * float("inf"))
        return TokenStats(
            rows_R=stats.rows_R,
            logprobs_R=bad,
            entropies_R=stats.entropies_R,
            energies_R=stats.energies_R,
            body_tokens=stats.body_tokens,
        )

    monkeypatch.setattr(PolicyModule, "forward", forward)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_bad_update_is_skipped_counted_and_dumped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    spoil(monkeypatch, {2}, where=where)  # one call a step: the second step is bad
    notes = Notes()
    train(small(), tmp_path / "run", observer=notes)
    lines = metrics(tmp_path / "run")
    assert [line["step/skipped"] for line in lines] == [0.0, 1.0, 0.0, 0.0]
    assert f"step 2 was not trained on: the {where} is not finite" in notes.notes
    dumped = load_file(tmp_path / "run" / "bad_steps" / "step_00002.safetensors")
    assert dumped["weights_T"].sum() > 0
    assert len(dumped["token_ids_T"]) == len(dumped["advantages_T"]) == len(dumped["weights_T"])
    assert int(dumped["prompt_lengths_B"].sum()) == len(dumped["prompt_ids"])


def test_a_bad_update_leaves_the_weights_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {2}, where="gradient")
    config = small(checkpoint={"every": 1, "keep_last": 5})
    train(config, tmp_path / "run")
    before, after, later = (weights(tmp_path / "run", step) for step in (1, 2, 3))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not all(torch.equal(after[name], later[name]) for name in before)


def test_bad_updates_in_a_row_end_the_run_and_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {2, 3}, where="loss")
    with pytest.raises(NumericalError, match=r"2 steps in a row .* the loss is not finite.*lr"):
        train(small(), tmp_path / "run")
    assert len(metrics(tmp_path / "run")) == 3  # nothing of the run is lost
    assert (tmp_path / "run" / "checkpoints" / "step_00003" / "manifest.json").exists()


def test_non_finite_logits_while_sampling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = loop.build_parts

    def broken(*arguments: Any, **named: Any) -> Any:
        parts = build(*arguments, **named)
        with torch.no_grad():
            parts.sampling.loaded.model.lm_head.weight[5] = float("nan")
        return parts

    monkeypatch.setattr(loop, "build_parts", broken)
    with pytest.raises(NumericalError, match=r"2 steps in a row .* logits that are not finite"):
        train(small(), tmp_path / "run")
    assert [line["step/skipped"] for line in metrics(tmp_path / "run")] == [1.0, 1.0]


def test_zero_variance_in_every_group(tmp_path: Path) -> None:
    config = small({"type": "format", "pattern": ".*"})  # right whatever is said
    with pytest.raises(
        SelectionError, match=r"in no group one sample did better than another; the t"
    ):
        train(config, tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert [line["reward/accepted_groups"] for line in lines] == [0, 0]
    assert [line["step/skipped"] for line in lines] == [1.0, 1.0]


def test_empty_pool_when_all_that_teaches_is_masked(tmp_path: Path) -> None:
    config = small(
        {"type": "format", "pattern": ".* n[1-4]"},
        rollout={"max_new_tokens": 2, "truncated": "mask", "group_size": 8, "prompts_per_step": 6},
    )
    with pytest.raises(SelectionError, match=r"cut by the token budget; raise rollout\.max_new"):
        train(config, tmp_path / "run")


def test_a_reward_that_fails_on_every_sample_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    config = small({"type": "custom", "path": "tests.faults.broken_reward:broken"})
    with pytest.raises(SelectionError, match=r"no completion could be scored.*ZeroDivisionError"):
        train(config, tmp_path / "run")
    assert metrics(tmp_path / "run")[0]["reward/errors"] == 12


def nothing(candidates: Candidates) -> torch.Tensor:
    return torch.zeros(len(candidates.entropies_N))


def nothing_of_sequence_0(candidates: Candidates) -> torch.Tensor:
    return (candidates.sequence_ids_N != candidates.sequence_ids_N.min()).float()


TO_THE_RULE = {"rule": f"{__name__}:nothing"}
ABOVE_ALL = {"rule": "threshold", "threshold_nats": 1e6}


@pytest.mark.parametrize("selection", [TO_THE_RULE, ABOVE_ALL], ids=["rule", "threshold"])
@pytest.mark.parametrize("scope", ["batch", "minibatch"])
@pytest.mark.parametrize("penalties_on", ["selected", "all"])
def test_steps_that_select_nothing_are_bad_steps(
    tmp_path: Path, selection: dict[str, Any], scope: str, penalties_on: str
) -> None:
    config = small(
        selection={**selection, "scope": scope},
        loss={"entropy_bonus": 0.01, "penalties_on": penalties_on},
        training={"mini_batches": 2},
    )
    notes = Notes()
    with pytest.raises(SelectionError, match=r"2 steps in a row .* no token was selected; lower s"):
        train(config, tmp_path / "run", observer=notes)
    lines = metrics(tmp_path / "run")
    assert [line["step/skipped"] for line in lines] == [1.0, 1.0]
    assert [line["selection/kept_fraction"] for line in lines] == [0.0, 0.0]
    all_of_it = "step 1 was not trained on"
    if penalties_on == "all":
        all_of_it = "not all of step 1 was trained on"
    assert f"{all_of_it}: no token was selected" in notes.notes


def test_a_mini_batch_that_selects_nothing_is_no_fault(tmp_path: Path) -> None:
    # one sequence a mini-batch, of which the first is left without a token
    config = small(
        selection={"rule": f"{__name__}:nothing_of_sequence_0"}, training={"mini_batches": 12}
    )
    train(config, tmp_path / "run")
    assert [line["step/skipped"] for line in metrics(tmp_path / "run")] == [0.0] * 4


def test_a_good_step_starts_the_count_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {1, 3}, where="loss")
    train(small(), tmp_path / "run")
    assert [line["step/skipped"] for line in metrics(tmp_path / "run")] == [1.0, 0.0, 1.0, 0.0]


def test_dumps_are_few_and_none_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch()
    lengths = [len(p) + len(c) for p, c in zip(batch.prompts_B, batch.completions_B, strict=True)]
    monkeypatch.setattr(bad_steps, "MOST_DUMPED_TOKENS", sum(lengths[:4]))
    users = tmp_path / "step_00001_mine.safetensors"
    users.touch()
    for step in (9, 10, 99999, 100000, 8):
        dump_batch(tmp_path / f"step_{step:05d}.safetensors", batch)
    kept = sorted(path.name for path in tmp_path.iterdir() if path != users)
    assert kept == ["step_00010.safetensors", "step_100000.safetensors", "step_99999.safetensors"]
    assert users.exists()
    assert len(load_file(tmp_path / kept[0])["prompt_lengths_B"]) == 4
    monkeypatch.setattr(bad_steps, "MOST_DUMPED_TOKENS", 1)
    dump_batch(tmp_path / "step_100001.safetensors", batch)
    assert len(load_file(tmp_path / "step_100001.safetensors")["prompt_lengths_B"]) == 1


def test_memory_on_a_cuda_device_is_measured_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert peak_memory().keys() == {"memory/peak_gb"}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: [1e9, 3e9][device])
    assert peak_memory()["memory/cuda_peak_gb"] == 3.0
