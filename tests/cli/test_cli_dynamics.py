"""``forkpoint dynamics`` and ``forkpoint branch`` as a user meets them."""

import re
import signal
import sys
from pathlib import Path

import pytest

from forkpoint.cli import main as main_module
from forkpoint.cli.dynamics import ENOUGH
from forkpoint.runs.results import AnyResult, Branching, Dynamics, read_result, result_path
from tests.checkpoint_runs import LocalScorer, disturbed_policy, run_with_checkpoints

USER_ERROR = 2
QUICK = ("--set", "rollout.max_new_tokens=40")


class Here:
    """A command in this process: (exit code, output, errors)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | int | Path) -> tuple[int, str, str]:
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


def result_of(root: Path, model: type[AnyResult]) -> AnyResult:
    return read_result(result_path(root, model), model)


def row_of(out: str, name: str) -> str:
    (line,) = [line for line in out.splitlines() if line.strip().startswith(name)]
    return line


def test_dynamics_of_a_run(here: Here, tmp_path: Path) -> None:
    run_with_checkpoints(tmp_path / "run", {4: 0.05, 8: 0.3})
    code, out, err = here("dynamics", "run", "--problems", 4, "--samples", 2, *QUICK)
    assert (code, err) == (0, "")
    found = result_of(tmp_path / "run", Dynamics)
    assert found.completions == 2 * found.prompts
    assert "(chance: 20 %)" in out
    for one in found.checkpoints:
        line = row_of(out, f"{one.name} ")
        assert one.overlap_with_base is not None
        assert one.overlap_with_final is not None
        assert one.overlap_with_base.percent() in line
        assert one.overlap_with_final.percent() in line
    assert [one.name for one in found.checkpoints] == ["base", "step_00004", "step_00008"]
    last = found.change_by_bin[-1].change
    assert f"95 to 100 %: {last.value:+.5f} nats [{last.low:+.5f}, {last.high:+.5f}]" in out
    # two checkpoints make no curve: how to keep more
    assert len(found.checkpoints) <= ENOUGH
    assert "--set checkpoint.every=4 --set checkpoint.keep_last=99" in re.sub(r"\s+", " ", out)
    # the table fits the terminal
    assert "…" not in out


def test_dynamics_of_named_models(here: Here, tmp_path: Path) -> None:
    disturbed_policy(tmp_path / "a", scale=0.05)
    disturbed_policy(tmp_path / "checkpoint-20", scale=0.2)
    code, _, err = here(
        *("dynamics", "--base", "lab:game", "--checkpoints", "a", "checkpoint-20"),
        *("--task", "lab:game", "--problems", "3", "--samples", "1", "--run-dir", "out", *QUICK),
    )
    assert (code, err) == (0, "")
    found = result_of(tmp_path / "out", Dynamics)
    assert [(c.name, c.step) for c in found.checkpoints] == [
        ("base", 0),
        ("a", None),
        ("checkpoint-20", 20),
    ]
    # the same completions once more, now read from where they are
    existing = Path("out") / "completions" / "dynamics" / "sampled" / "part_00000.parquet"
    code, _, err = here(
        *("dynamics", "--base", "lab:game", "--checkpoints", "a", "checkpoint-20"),
        *("--rollouts", existing, "--run-dir", "again"),
    )
    assert (code, err) == (0, "")
    again = result_of(tmp_path / "again", Dynamics)
    assert [c.overlap_with_base for c in again.checkpoints] == [
        c.overlap_with_base for c in found.checkpoints
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name a run, or --base, --checkpoints and --run-dir"),
        (("--run-dir", "out"), "name the models: --base MODEL --checkpoints MODEL"),
        (("--base", "lab:game", "--run-dir", "out"), "name the models"),
        (("nowhere",), "there is no file nowhere/config.json"),
        (("empty",), "empty has no checkpoints: train with --set checkpoint.every=4"),
        (("empty", "--base", "lab:game"), "no --base, --checkpoints"),
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
    command = (
        "branch",
        "--model",
        "lab:game",
        "--task",
        "lab:game",
        "--run-dir",
        "out",
        "--samples",
        "1",
    )
    small = ("--problems", "8", "--continuations", "3", *QUICK)
    code, out, err = here(*command, *small, "--budget-tokens", "1500")
    assert (code, err) == (0, "")
    found = result_of(tmp_path / "out", Branching)
    measured = found.high.positions
    assert measured >= 1
    text = re.sub(r"\s+", " ", out)
    assert f"{measured} of {found.pairs_possible} pairs of positions measured" in text
    assert f"{found.spent_tokens:,} of 1,500 tokens spent" in text
    gap = found.high.gap
    assert gap is not None
    line = row_of(out, "|gap|")
    assert f"{gap.value:.3g}   [{gap.low:.3g}, {gap.high:.3g}]" in line
    assert "biased upwards" in out
    assert "…" not in out
    code, _, err = here(*command, "--problems", "8", "--budget-tokens", "100")
    assert code == USER_ERROR
    assert "does not cover the first answers" in err


def test_a_signal_ends_it_with_what_was_measured(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forkpoint.cli.terminal import StopFlag

    pairs = tmp_path / "out" / "completions" / "branching"

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
    assert not result_path(tmp_path / "out", Branching).exists()


@pytest.mark.parametrize("command", ["dynamics", "branch"])
def test_help_says_what_it_is_for(command: str, here: Here) -> None:
    code, out, _ = here(command, "--help")
    assert code == 0
    assert "--run-dir" in out
