"""A run that ends by an error: its finished steps are saved, and it goes on from them."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forkpoint.config import RunConfig
from forkpoint.errors import RunError, UserCodeError
from forkpoint.training import loop, sampler
from forkpoint.training.checkpoint import latest_checkpoint
from forkpoint.training.loop import train
from tests.faults import broken_rule
from tests.faults.test_bad_steps import Notes, small

RULE = {"rule": "tests.faults.broken_rule:top_or_raise"}
STEPS = 4


def config(scope: str = "batch", **checkpoint: int) -> RunConfig:
    return small(
        selection={**RULE, "scope": scope},
        checkpoint={"every": 0, **checkpoint},
        training={"steps": STEPS, "mini_batches": 2, "max_bad_steps": 5},
        rollout={"prompts_per_step": 4},
    )


@pytest.fixture(autouse=True)
def _calm() -> Iterator[None]:
    broken_rule.raises_at = None
    broken_rule.calls.clear()
    yield
    broken_rule.raises_at = None


def result(root: Path) -> dict[str, Any]:
    """What must be the same to the last byte."""
    last = root / "checkpoints" / f"step_{STEPS:05d}"
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return {
        "metrics": [
            {k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))}
            for line in lines
        ],
        "files": {p.name: p.read_bytes() for p in last.iterdir()},
        "rollouts": {p.name: p.read_bytes() for p in (root / "completions").rglob("*.parquet")},
    }


def saved_step(root: Path) -> int:
    found, skipped = latest_checkpoint(root / "checkpoints")
    assert not skipped
    return found.state.step if found else 0


def same_as_never_broken(root: Path, settings: RunConfig) -> None:
    broken_rule.raises_at = None
    train(settings, root, resume=True)
    train(settings, root.with_name("uninterrupted"))
    assert result(root) == result(root.with_name("uninterrupted"))


def test_a_rule_that_raises_costs_no_finished_step(tmp_path: Path) -> None:
    broken_rule.raises_at = (3, 0)
    with pytest.raises(UserCodeError, match=r"raised ValueError: not today \(.*rule\.py, line 19"):
        train(config(), tmp_path / "run")
    assert saved_step(tmp_path / "run") == 2
    same_as_never_broken(tmp_path / "run", config())


@pytest.mark.parametrize(
    ("every", "saved", "where"),
    [(0, 0, "from the beginning"), (1, 2, "after step 2 from step_00002")],
)
def test_after_the_first_update_the_run_says_from_where_it_goes_on(
    tmp_path: Path, every: int, saved: int, where: str
) -> None:
    """The second mini-batch selects when the first has moved the weights."""
    settings, notes = config("minibatch", every=every), Notes()
    broken_rule.raises_at = (3, 1)
    with pytest.raises(UserCodeError):
        train(settings, tmp_path / "run", observer=notes)
    assert saved_step(tmp_path / "run") == saved
    assert notes.notes[-1] == (
        "step 3 was broken off after its first update, so it cannot be saved; --resume goes on "
        + where
    )
    same_as_never_broken(tmp_path / "run", settings)


def fail_in_step(
    monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException, call: int
) -> None:
    """Make the ``name`` of the loop, or of its sampler, raise in one of its calls."""
    module = loop if hasattr(loop, name) else sampler
    original, calls = getattr(module, name), 0

    def failing(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return original(*arguments, **named)

    monkeypatch.setattr(module, name, failing)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MemoryError(), RunError("no space")], ids=lambda e: repr(e)[:8]
)
@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("collect_groups", 2),
        ("build_batch", 2),
        ("write_completions", 0),  # after the step's updates
        ("rollout_metrics", 0),
    ],
)
def test_whatever_is_raised_in_step_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, saved: int, error: BaseException
) -> None:
    with monkeypatch.context() as patch:
        fail_in_step(patch, name, error, call=3)
        with pytest.raises(type(error)):
            train(config(), tmp_path / "run")
    assert saved_step(tmp_path / "run") == saved


def test_the_fault_is_told_even_if_nothing_can_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    fail_in_step(monkeypatch, "collect_groups", ZeroDivisionError("of the engine"), call=2)
    fail_in_step(monkeypatch, "save_checkpoint", RunError("the disk is full"), call=1)
    with pytest.raises(ZeroDivisionError):
        train(config(), tmp_path / "run", observer=notes)
    assert notes.notes[-1] == "the disk is full"


def test_an_update_that_is_broken_off_counts_as_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C twice while AdamW walks over the weights."""
    import torch

    original, calls = torch.optim.AdamW.step, 0

    def step(self: Any) -> None:
        nonlocal calls
        calls += 1
        original(self)
        if calls == 5:  # the first of step 3
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            train(config(), tmp_path / "run")
    finally:
        signal.signal(signal.SIGINT, before)
    assert saved_step(tmp_path / "run") == 0
    monkeypatch.undo()
    same_as_never_broken(tmp_path / "run", config())
