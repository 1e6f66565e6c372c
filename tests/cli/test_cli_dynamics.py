"""``forkpoint dynamics`` and ``forkpoint branch`` as a user meets them."""

import json
import re
import signal
import sys
from pathlib import Path

import pytest

from forkpoint.cli import main as main_module
from forkpoint.cli.dynamics import ENOUGH
from tests.checkpoint_runs import LocalScorer, disturbed_policy, run_with_checkpoints

USER_ERROR = 2
QUICK = ("--set", "rollout.max_new_tokens=40")


class Here:
    """A command in this process: (exit code, output, errors)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["forkpoint", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main_module.main()
        out, err = self._capsys.readouterr()
        return int(caught.value.code or 0), out, err


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Here:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("forkpoint.sampling.build.build_scorer", LocalScorer)
    return Here(monkeypatch, capsys)


def row_of(out: str, name: str) -> str:
    (line,) = [line for line in out.splitlines() if line.strip().startswith(name)]
    return line


def test_dynamics_of_a_run(here: Here, tmp_path: Path) -> None:
    run_with_checkpoints(tmp_path / "run", {4: 0.05, 8: 0.3})
    code, out, err = here("dynamics", "run", "--problems", 4, "--samples", 2, *QUICK)
    assert (code, err) == (0, "")
    summary = json.loads((tmp_path / "run" / "analysis" / "dynamics.json").read_text())
    assert summary["completions"] == 2 * summary["prompts"]
    assert "(chance: 20 %)" in out
    for number, name in enumerate(("base", "step_00004", "step_00008")):
        base, final = (summary[f"overlap_with_{end}"][number] for end in ("base", "final"))
        line = row_of(out, f"{name} ")
        assert f"{base['value']:.1%} [{100 * base['low']:.1f}, {100 * base['high']:.1f}]" in line
        assert f"{final['value']:.1%} [" in line
    last = summary["change_by_bin"][-1]
    assert f"95 to 100 %: {last['mean']:+.5f} nats" in out
    # two checkpoints make no curve: how to keep more
    assert len(summary["checkpoints"]) <= ENOUGH
    assert "--set checkpoint.every=4 --set checkpoint.keep_last=99" in re.sub(r"\s+", " ", out)
    # the table fits the terminal
    assert "…" not in out


def test_dynamics_of_named_models(here: Here, tmp_path: Path) -> None:
    disturbed_policy(tmp_path / "a", scale=0.05)
    disturbed_policy(tmp_path / "checkpoint-20", scale=0.2)
    code, _, err = here(
        *("dynamics", "--base", "lab", "--checkpoints", "a", "checkpoint-20"),
        *("--task", "lab", "--problems", "3", "--samples", "1", "--run-dir", "out", *QUICK),
    )
    assert (code, err) == (0, "")
    summary = json.loads((tmp_path / "out" / "analysis" / "dynamics.json").read_text())
    assert [(c["name"], c["step"]) for c in summary["checkpoints"]] == [
        ("base", 0),
        ("a", None),
        ("checkpoint-20", 20),
    ]
    # the same completions once more, now read from where they are
    existing = Path("out") / "analysis" / "dynamics" / "completions" / "part_00000.parquet"
    code, _, err = here(
        *("dynamics", "--base", "lab", "--checkpoints", "a", "checkpoint-20"),
        *("--rollouts", existing, "--run-dir", "again"),
    )
    assert (code, err) == (0, "")
    again = json.loads((tmp_path / "again" / "analysis" / "dynamics.json").read_text())
    assert again["overlap_with_base"] == summary["overlap_with_base"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a run, or --base, --checkpoints and --run-dir"),
        (("--run-dir", "out"), "name the models: --base MODEL --checkpoints MODEL"),
        (("--base", "lab", "--run-dir", "out"), "name the models"),
        (("nowhere",), "there is no file nowhere/config.json"),
        (("empty",), "empty has no checkpoints: train with --set checkpoint.every=4"),
        (("empty", "--base", "lab"), "no --base, --checkpoints"),
        (("empty", "--rollouts", "x", "--problems", "3"), "--rollouts are completions already"),
        (("empty", "--problems", "0"), "must be 1 at least"),
    ],
)
def test_dynamics_that_cannot_be(
    arguments: tuple[str, ...], message: str, here: Here, tmp_path: Path
) -> None:
    run_with_checkpoints(tmp_path / "empty", {})
    code, _, err = here("dynamics", *arguments)
    assert code == USER_ERROR
    assert message in err
    assert err.count("\n") == 1


def test_branch(here: Here, tmp_path: Path) -> None:
    command = ("branch", "--model", "lab", "--task", "lab", "--run-dir", "out", "--samples", "1")
    small = ("--problems", "8", "--continuations", "3", *QUICK)
    code, out, err = here(*command, *small, "--budget-tokens", "1500")
    assert (code, err) == (0, "")
    summary = json.loads((tmp_path / "out" / "analysis" / "branching.json").read_text())
    measured = summary["groups"]["high"]["positions"]
    assert measured >= 1
    text = re.sub(r"\s+", " ", out)
    assert f"{measured} of {summary['pairs_possible']} pairs of positions measured" in text
    assert f"{summary['spent_tokens']:,} of 1,500 tokens spent" in text
    gap = summary["groups"]["high"]["gap"]
    line = row_of(out, "|gap|")
    assert f"{gap['value']:.3g}   [{gap['low']:.3g}, {gap['high']:.3g}]" in line
    assert "biased upwards" in out
    assert "…" not in out
    code, _, err = here(*command, "--problems", "8", "--budget-tokens", "100")
    assert code == USER_ERROR
    assert "does not cover the first answers" in err


def test_a_signal_ends_it_with_what_was_measured(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forkpoint.training.stop import StopFlag

    pairs = tmp_path / "out" / "analysis" / "branching"

    def stop_after_a_pair(flag: StopFlag) -> bool:
        if (pairs / "pair_00000.json").exists():
            flag.signal = signal.SIGTERM
        return flag.signal is not None

    monkeypatch.setattr(StopFlag, "__call__", stop_after_a_pair)
    code, out, err = here(
        *("branch", "--run-dir", "out", "--problems", "8", "--samples", "1"),
        *("--continuations", "3", "--budget-tokens", "1500", *QUICK),
    )
    assert (code, err) == (128 + signal.SIGTERM, "")
    assert "the same command goes on" in re.sub(r"\s+", " ", out)
    assert [p.name for p in pairs.glob("pair_*")] == ["pair_00000.json"]
    assert not (tmp_path / "out" / "analysis" / "branching.json").exists()


@pytest.mark.parametrize("command", ["dynamics", "branch"])
def test_help_says_what_it_is_for(command: str, here: Here) -> None:
    code, out, _ = here(command, "--help")
    assert code == 0
    assert "--run-dir" in out
