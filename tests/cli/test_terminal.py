"""Nothing that data, a model, a verifier or a file name says is obeyed by the terminal."""

import ast
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import forkpoint
from forkpoint.cli.table import LiveTable
from forkpoint.cli.terminal import SafeConsole, visible
from tests.cli.test_cli import USER_ERROR, Here, here
from tests.faults.hostile_reward import HOSTILE

__all__ = ["here"]

FILE_NAME = HOSTILE.replace("\x00", "").replace("/", "")
CLI = Path(forkpoint.__file__).parent / "cli"


def harmless(text: str) -> bool:
    controls = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs")]
    return set(controls) <= {"\n"}


# ---- the function and the console ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, naïve, 日本, ½", "plain, naïve, 日本, ½"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\rb\tc\x7f\x9b", r"a\rb\tc\x7f\x9b"),
        ("\u202eback \u200b\u2066", r"\u202eback \u200b\u2066"),
        ("\ud800 \u2028", r"\ud800 \u2028"),
        ("two\nlines", r"two\nlines"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, expected: str) -> None:
    assert visible(text) == expected
    assert visible(expected) == expected


def test_lines_are_kept_where_they_are_meant() -> None:
    assert visible("two\nlines\x1b", newlines=True) == "two\nlines\\x1b"


def table() -> Table:
    made = Table(title=Text(HOSTILE))
    made.add_column(Text(HOSTILE))
    made.add_row(Text(HOSTILE))
    return made


@pytest.mark.parametrize(
    "show",
    [
        lambda console: console.print(HOSTILE, markup=False),
        lambda console: console.print(Text(HOSTILE)),
        lambda console: console.print(table(), markup=False),
        lambda console: console.print(Panel(Text(HOSTILE))),
        lambda console: console.note(HOSTILE),
        lambda console: console.title(HOSTILE),
        lambda console: LiveTable(console, 1, HOSTILE).note(HOSTILE),
        lambda console: LiveTable(console, 1, HOSTILE).__enter__().__exit__(),
    ],
)
def test_the_console_obeys_no_text(show: Callable[[SafeConsole], Any]) -> None:
    written = io.StringIO()
    show(SafeConsole(file=written, width=300))
    assert "owned" in written.getvalue()
    assert harmless(written.getvalue())


def test_the_console_still_has_colours_of_its_own() -> None:
    written = io.StringIO()
    console = SafeConsole(file=written, width=99, force_terminal=True, color_system="standard")
    console.note("\x1b[31m")
    assert written.getvalue() == "\x1b[2m  \\x1b[31m\x1b[0m\n"


# ---- whole commands -----------------------------------------------------------------------------


def test_an_error_of_a_verifier(here: Here) -> None:
    rewards = 'rewards=[{type="custom", path="tests.faults.hostile_reward:hostile"}]'
    small = ["rollout.prompts_per_step=1", "rollout.group_size=2", "rollout.max_new_tokens=4"]
    sets = [rewards, *small, "rollout.max_rounds=1", "training.steps=2", "training.max_bad_steps=2"]
    code, out, err = here("train", "--run-dir", FILE_NAME, *(x for s in sets for x in ("--set", s)))
    assert code == USER_ERROR
    assert "ValueError" in out  # a note of each step
    assert "ValueError" in err
    assert len(err.splitlines()) == 1
    assert harmless(out + err)


def test_the_names_of_columns(here: Here, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps({HOSTILE: "x"}) + "\n")
    settings = ["--set", 'task={type="data", path="data.jsonl"}']
    code, out, err = here("train", *settings)
    assert code == USER_ERROR
    assert "it has \\x1b]0;owned" in err
    assert harmless(out + err)


def test_words_of_a_model_and_the_name_of_a_file(here: Here, tmp_path: Path) -> None:
    path = tmp_path / f"{FILE_NAME}.jsonl"
    words = ["n3", "n5", "goal", "n8", ":"]
    row = {"prompt": " ".join(words), "completion": "n3 + n5"}
    path.write_text(json.dumps(row) + "\n")
    code, out, err = here(
        "analyze", "--rollouts", path, "--run-dir", f"run {FILE_NAME}", "--min-count", "0"
    )
    assert code == 0, err
    assert harmless(out + err)
    path.write_text(json.dumps({"prompt": "n3", "completion": HOSTILE}) + "\n")
    code, out, err = here("analyze", "--rollouts", path, "--run-dir", "other")
    assert code == USER_ERROR
    assert harmless(out + err)


@pytest.mark.parametrize(
    "arguments",
    [
        [FILE_NAME],
        ["train", FILE_NAME],
        ["train", f"--{FILE_NAME}"],
        ["train", "--set", FILE_NAME],
        ["train", "--set", f"model.path={FILE_NAME}", "--dry-run"],
        ["train", "--set", f"optim.lr={FILE_NAME}"],
        ["eval", "--model", f"./{FILE_NAME}"],
        ["eval", "--problems", FILE_NAME],
        ["report", FILE_NAME],
        ["figures", FILE_NAME],
        ["dynamics", FILE_NAME],
        ["temperature", "--run-dir", "x", "--temperatures", FILE_NAME],
    ],
    ids=lambda arguments: " ".join(arguments[:2]).replace(FILE_NAME, "NAME"),
)
def test_what_is_typed(here: Here, arguments: list[str]) -> None:
    code, out, err = here(*arguments)
    assert (code == 0) == ("--dry-run" in arguments)
    assert "owned" in out + err
    assert harmless(out + err)


# ---- the code -----------------------------------------------------------------------------------


def calls_in(path: Path, name: str) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == name]


def test_every_command_prints_through_the_safe_console_or_what_is_visible() -> None:
    for path in CLI.glob("*.py"):
        assert not calls_in(path, "Console"), path
        for call in calls_in(path, "print"):
            text = ast.unparse(call)
            assert "visible(" in text or "json.dumps(" in text, f"{path}: {text}"
