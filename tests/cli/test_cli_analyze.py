"""``forkpoint analyze`` and ``forkpoint figures`` as a user meets them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from forkpoint.cli import main as main_module
from forkpoint.cli.analyze import headlines
from forkpoint.cli.options import PROBLEMS, SAMPLES, HeldOut
from forkpoint.errors import ConfigError
from forkpoint.runs.results import Pattern, find_result
from tests.stored import make_pattern

PROMPT = "n3 n5 n2 goal n16 :"
USER_ERROR = 2


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Any:
    """Runs a command line in this process: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["forkpoint", *arguments])
        with pytest.raises(SystemExit) as caught:
            main_module.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


def write_rollouts(path: Path, *completions: str, **fields: Any) -> Path:
    rows = [{"prompt": PROMPT, "completion": c, **fields} for c in completions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_of_the_documentation(here: Any, tmp_path: Path) -> None:
    arguments = [
        "analyze",
        "--model",
        "lab:game",
        "--task",
        "lab:game",
        "--samples",
        "2",
        "--problems",
        "8",
    ]
    code, out, err = here(*arguments, "--run-dir", "run")
    assert (code, err) == (0, "")
    pattern = find_result(tmp_path / "run", Pattern)
    assert pattern is not None
    assert (pattern.completions, pattern.prompts) == (16, 8)
    assert f"{pattern.tokens:,} tokens of 16 completions to 8 prompts" in out
    assert "true forks: precision" in out
    assert "look at it with forkpoint report run" in out


def test_rollouts_words_and_figures(here: Any, tmp_path: Path) -> None:
    write_rollouts(tmp_path / "a.jsonl", *["pick n3 and n5 :"] * 4, "", reward=1.0)
    arguments = ["analyze", "--rollouts", "a.jsonl", "--run-dir", "run", "--min-count", "3"]
    code, out, err = here(*arguments, "--format", "svg")
    assert (code, err) == (0, "")
    assert "part 1  20 tokens" in out
    assert "completions without text, left out: 1 (the first: a.jsonl, row 5)" in out
    assert "words that occur more than 3 times: 5" in out
    # "n3" is a choice of three numbers, "and" is forced
    lines = [line.split() for line in out.splitlines() if line.strip().startswith('"')]
    assert lines[0][:2] == ['"', 'n3"']
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {
        f"{name}.svg"
        for name in ("entropy_histogram", "words_highest", "words_lowest", "entropy_by_position")
    }
    assert "run/figures/entropy_histogram.svg" in out
    # the same command again needs no model and draws the same
    assert here(*arguments)[0] == 0
    code, out, _ = here("figures", "run", "--format", "png")
    assert code == 0
    assert out.splitlines()[0] == "run/figures/entropy_histogram.png"


def test_columns_of_a_file_that_is_not_given_are_refused(here: Any) -> None:
    code, _, err = here("analyze", "--run-dir", "run", "--completion-column", "nonsense")
    assert code == 2
    assert "the names of columns are read with --rollouts FILE" in err


def test_hostile_words_are_printed_as_text(here: Any, tmp_path: Path) -> None:
    from forkpoint.analysis.summary import SummarySettings
    from forkpoint.cli.analyze import show
    from forkpoint.runs import RunDirectory
    from tests.stored import make_completion, make_store
    from tests.unit.test_analysis_summary import described, summarise

    texts = ["[red]no[/red]", "\x1b[31m", "\u202e", "\n"] * 2
    store = make_store(tmp_path, [make_completion(texts=texts, ids=[1, 2, 3, 4] * 2)])
    words = RunDirectory(tmp_path).words_parquet
    pattern = summarise(store, words, described("a.jsonl"), SummarySettings(min_count=1))
    import io

    from forkpoint.cli.terminal import SafeConsole

    out = io.StringIO()
    show(SafeConsole(file=out, width=100), pattern, tmp_path)
    printed = out.getvalue()
    assert '"[red]no[/red]"' in printed
    assert '"\\u001b[31m"' in printed
    assert '"\\u202e"' in printed
    assert "\x1b" not in printed


def test_without_a_frequent_word_it_says_so(here: Any, tmp_path: Path) -> None:
    write_rollouts(tmp_path / "a.jsonl", "pick n3 and")
    code, out, _ = here("analyze", "--rollouts", "a.jsonl", "--run-dir", "run")
    assert code == 0
    assert "no word occurs more than 100 times (--min-count)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rollouts", "missing.jsonl"], "cannot read missing.jsonl: there is no such file"),
        (["--rollouts", "a.jsonl", "--samples", "3"], "--rollouts are completions already"),
        (["--rollouts", "a.jsonl", "--task", "lab:game"], "--rollouts are completions already"),
        (["--rollouts", "a.jsonl", "--completion-column", "text"], "has no column 'text'"),
        (["--samples", "0"], "--problems and --samples must be 1 at least"),
        (["--model", "./nowhere"], "there is no such folder"),
        (["--keep-fraction", "2"], "--keep-fraction 2 is not in (0, 1]"),
        (["--set", "rollout.temprature=1"], "did you mean rollout.temperature?"),
    ],
)
def test_an_error_is_one_line(
    here: Any, tmp_path: Path, arguments: list[str], message: str
) -> None:
    write_rollouts(tmp_path / "a.jsonl", "pick n3 and")
    code, _, err = here("analyze", "--run-dir", "run", *arguments)
    assert code == USER_ERROR
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_other_settings_in_the_same_folder_are_refused(here: Any, tmp_path: Path) -> None:
    write_rollouts(tmp_path / "a.jsonl", "pick n3 and")
    assert here("analyze", "--rollouts", "a.jsonl", "--run-dir", "run")[0] == 0
    code, _, err = here("analyze", "--rollouts", "a.jsonl", "--run-dir", "run", "--top-k", "2")
    assert code == USER_ERROR
    assert "was started with other settings (top_k: 5 -> 2)" in err


def test_figures_of_nothing(here: Any) -> None:
    code, _, err = here("figures", ".")
    assert (code, err) == (
        USER_ERROR,
        "error: . holds nothing to draw: run forkpoint analyze first\n",
    )


def test_how_many_problems_and_samples(tmp_path: Path) -> None:
    def counts(
        problems: int | None, samples: int | None, recipe: str = "", set_: tuple[str, ...] = ()
    ) -> tuple[int, int]:
        path = tmp_path / "recipe.toml"
        path.write_text(recipe)
        held_out = HeldOut(problems=problems, samples=samples, set_=list(set_))
        evaluation = held_out.config(path).evaluation
        return evaluation.problems, evaluation.samples

    assert counts(None, None) == (PROBLEMS, SAMPLES)
    assert counts(7, None) == (7, SAMPLES)
    assert counts(None, None, recipe="[evaluation]\nproblems = 9") == (9, SAMPLES)
    assert counts(7, 3, recipe="[evaluation]\nproblems = 9\nsamples = 4") == (7, 3)
    assert counts(None, None, set_=("evaluation.samples=2",)) == (PROBLEMS, 2)
    with pytest.raises(ConfigError, match="1 at least"):
        counts(0, 1)


def test_tasks_and_models_by_name() -> None:
    config = HeldOut(task="chain_sum").config(None, "models/x")
    assert (config.model.path, config.task.type) == ("models/x", "gym")
    assert config.task.model_dump()["name"] == "chain_sum"


def test_headlines_without_truth_or_rewards() -> None:
    pattern = make_pattern(
        tokens=1234, completions=5, prompts=2, temperature=0.5, model="m", keep_fraction=0.1,
        share_below_0_01=0.5, entropy_threshold=0.75,
    )  # fmt: skip
    assert headlines(pattern) == [
        "1,234 tokens of 5 completions to 2 prompts, T = 0.5, m",
        "entropy: mean 0.250 nats, below 0.01 nats in 50.0% of the tokens",
        "forks: the top 10 % have 0.750 nats or more and hold 87.5% of all entropy",
    ]
