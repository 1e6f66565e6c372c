"""Programs of completions: which one is run, when an output is right, what the kernel refuses."""

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from forkpoint.config import parse_config
from forkpoint.errors import ConfigError, DataError, RewardError
from forkpoint.rewards import build_scorer
from forkpoint.verifiers import sandbox as sandbox_module
from forkpoint.verifiers.code import (
    CodeVerifier,
    Judgement,
    Outcome,
    last_program,
    read_tests,
    same_output,
    same_value,
)
from forkpoint.verifiers.sandbox import Sandbox, find_sandbox
from forkpoint.verifiers.syscalls import CALLS, call_filter
from forkpoint.verifiers.text import OverLimitError
from tests.sandboxed import answered, make_sandbox, settings
from tests.unit.test_rewards import answer, problem, task

# ---- which program -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\nprint(1)\n```", "print(1)"),
        ("```\nprint(1)\n```", "print(1)"),
        ("```Python3 title=a\nx\n\ny\n``` \n", "x\n\ny"),
        ("```py\r\nx\r\n```\r", "x\r"),
        # the last one counts, if it is Python and closed
        ("```python\na\n```\nno:\n```python\nb\n```\nDone.", "b"),
        ("```python\na\n```\n```cpp\nb\n```\n```text\nc\n```", "a"),
        ("```python\na\n```\n```python\nb", "a"),
        # one that nobody closed ends where the next begins
        ("```text\nwhat if\n```python\nb\n```", "b"),
        ("````python\na\n```\nb\n````", "a\n```\nb"),
        ("1. so:\n   ```python\n   if x:\n       y\n   ```", "if x:\n    y"),
        ("<think>\n```python\na\n```\n</think>\nNothing.", None),
        ("```python\na\n```\n</think>\n```python\nb\n```", "b"),
        ("```python\n```", ""),
        ("print(1)", None),
        ("`print(1)`", None),
        ("```python print(1)```", None),
        ("```cpp\na\n```", None),
        ("", None),
    ],
)
def test_the_last_closed_block_of_python_is_the_program(text: str, program: str | None) -> None:
    assert last_program(text) == program


def test_looking_for_a_program_takes_time_in_proportion_to_the_text() -> None:
    assert last_program("```python\n" * 200_000) is None
    assert last_program("`" * 2_000_000) is None
    assert last_program("``` " + "a" * 2_000_000 + "`") is None


# ---- what is right -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        ("3\n", "3", True),
        ("  3 4 \n5\n\n", "3 4\n5", True),
        ("3 4", "3  4", True),  # numbers, one by one
        ("a b", "a  b", False),  # words, as they are
        ("3\n4", "3 4", False),
        ("3\n\n4", "3\n4", False),
        ("1.0", "1", True),
        ("1e3", "1000", True),
        ("-0", "0", True),
        ("0.333", "0.33", False),
        ("0.1", "0.10000000000000001", False),
        # equal as floats: 2^53 and 2^53 + 1
        ("9007199254740992", "9007199254740993", False),
        ("yes", "YES", False),
        ("1 yes", "1.0 yes", False),
        ("", "", True),
        ("", "0", False),
        ("0", "", False),
        ("nan", "nan", True),  # the same text
        ("nan 1", "nan 1.0", False),
        ("snan", "1", False),  # comparing it raises
        ("1e999999999999999999", "1", False),
        ("1e999999", "1", False),
        ("0" * 100_000 + "7", "7", True),
    ],
)
def test_outputs_are_equal_line_by_line_as_text_or_numbers(
    found: str, wanted: str, same: bool
) -> None:
    assert same_output(found, wanted) is same


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        ("[1, 2]", "[1,2]", True),
        ("1", "1.0", True),
        ("true", "1", True),
        ('"1"', "1", False),
        ("[1, 2]", "[2, 1]", False),
        ("0.30000000000000004", "0.3", False),
        ("null", "null", True),
        ("NaN", "1", False),
        ("", "null", False),
        ("[1, 2", "[1, 2]", False),
        ("[" * 100_000, "1", False),
        ("9" * 10_000, "1", False),
    ],
)
def test_values_are_equal_as_json(found: str, wanted: str, same: bool) -> None:
    assert same_value(found, wanted) is same


def test_an_answer_that_is_no_json_is_a_fault_of_the_data() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        same_value("1", "one")


# ---- tests of a problem --------------------------------------------------------------------------

SUMS = {"inputs": ["1 2\n", "5 5\n"], "outputs": ["3\n", "10\n"]}


def test_tests_are_a_mapping_or_its_text() -> None:
    assert read_tests(SUMS) == (("1 2\n", "5 5\n"), ("3\n", "10\n"), "")
    assert read_tests(json.dumps({**SUMS, "fn_name": None})) == read_tests(SUMS)
    assert read_tests({**SUMS, "fn_name": "add"}).function == "add"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"inputs": [], "outputs": []}, "0 inputs and 0 outputs"),  # would be right at once
        ({"inputs": ["1"], "outputs": []}, "1 inputs and 0 outputs"),
        ({"inputs": ["1"]}, "a mapping with inputs and outputs"),
        ({"inputs": [["1"]], "outputs": ["1"]}, "must be text"),
        ([1], "a mapping with inputs and outputs"),
        ("7", "a mapping with inputs and outputs"),
        ("seven", "Expecting value"),
    ],
)
def test_what_is_no_tests_is_an_error_and_no_verdict(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_tests(value)


# ---- what a recipe says --------------------------------------------------------------------------

NOWHERE = Sandbox("/nowhere/bwrap", "/usr/bin/python3", (), seconds=6, memory_gb=1.0)


def test_code_is_refused_unless_it_is_switched_on() -> None:
    with pytest.raises(ConfigError, match=r"runs programs .* set scoring.allow_code = true"):
        parse_config({"rewards": [{"type": "task"}, {"type": "code"}]})
    config = parse_config({"rewards": [{"type": "code"}], "scoring": {"allow_code": True}})
    assert config.rewards[0].timeout_s == 120.0
    assert not parse_config({}).scoring.allow_code
    put_in = parse_config({}).model_copy(update={"rewards": config.rewards})
    with pytest.raises(ConfigError, match=r"set scoring.allow_code = true"):
        build_scorer(put_in, task("tests"))


def build(reward: dict[str, Any], *columns: str) -> CodeVerifier:
    config = parse_config({"rewards": [reward], "scoring": {"allow_code": True}})
    scorer = build_scorer(config, task(*columns))
    scorer.close()
    (function,) = scorer._functions
    assert (function.name, function.is_verifier) == ("code", True)
    return function.call.verifier  # pyright: ignore[reportFunctionMemberAccess]


def test_a_missing_column_is_named_before_the_sandbox_is_tried() -> None:
    with pytest.raises(DataError, match=r"no column 'tests' \(rewards.tests_column\); it has test"):
        build({"type": "code"}, "test")


def test_without_bubblewrap_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RewardError, match="bubblewrap, which is not installed: apt-get install"):
        build({"type": "code"}, "tests")
    monkeypatch.setattr(sandbox_module.sys, "platform", "darwin")
    with pytest.raises(RewardError, match="on Linux only"):
        build({"type": "code"}, "tests")


def test_limits_of_a_recipe_reach_the_sandbox() -> None:
    reward = settings(tests_column="truth.tests", test_seconds=3, memory_gb=0.5)
    verifier = build(reward, "truth")
    assert verifier.tests_column == "truth.tests"
    assert (verifier.sandbox.seconds, verifier.sandbox.memory_gb) == (3, 0.5)
    assert verifier.sandbox.clock_s == 7.0


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/true"])
def test_a_python_that_is_none(python: str) -> None:
    settings()
    with pytest.raises(RewardError, match=f"rewards.python = '{python}' is not a Python"):
        find_sandbox(python, seconds=6, memory_gb=1.0)


def test_a_python_that_would_show_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    python = settings().get("python")
    monkeypatch.setenv("HOME", "/usr/home/me")
    monkeypatch.setattr(
        sandbox_module, "ASK", "import json, sys; print(json.dumps([sys.executable, '/usr/home']))"
    )
    with pytest.raises(RewardError, match="installed right in /usr/home"):
        find_sandbox(python, seconds=6, memory_gb=1.0)


def write_script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        # a bubblewrap that runs nothing, one that is too old, and one that shuts nothing out
        ("exit 0", r"did not come up: nothing was heard of it .*docs/rewards.md"),
        ("echo bwrap: Unknown option --size >&2; exit 1", "did not come up: bwrap: Unknown option"),
        ('while [ "$1" != -- ]; do shift; done; shift; exec "$@"', "not shut, so no program is"),
    ],
)
def test_a_sandbox_that_does_not_hold_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    python = settings().get("python")
    tmp_path.chmod(0o755)
    monkeypatch.setattr(sandbox_module, "NOBODY", os.geteuid())  # who may read that folder
    write_script(tmp_path / "bwrap", script)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(RewardError, match=message):
        find_sandbox(python, seconds=6, memory_gb=1.0)


def test_a_sandbox_that_goes_away_gives_no_verdict() -> None:
    verifier = CodeVerifier("tests", NOWHERE)
    with pytest.raises(RewardError, match=r"the sandbox cannot be started: .*No such file"):
        verifier({"tests": SUMS}, answered("print(sum(map(int, input().split())))"))
    # nothing to run, nothing to start
    assert verifier({"tests": SUMS}, "I do not know.") == 0.0


# ---- what the kernel refuses ---------------------------------------------------------------------

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
X86, ARM, I386 = 0xC000003E, 0xC00000B7, 0x40000003


def verdict(program: bytes, architecture: int, number: int, argument: int = 0) -> int:
    """What the kernel does with a filter: its few operations, by the kernel's documentation."""
    words = {0: number, 4: architecture, 16: argument & 0xFFFFFFFF, 20: argument >> 32}
    steps = list(struct.iter_unpack("=HBBI", program))
    place, held = 0, 0
    while True:
        operation, then, otherwise, constant = steps[place]
        place += 1
        match operation:
            case 0x20:
                held = words[constant]
            case 0x06:
                return constant
            case 0x15:
                place += then if held == constant else otherwise
            case 0x35:
                place += then if held >= constant else otherwise
            case 0x45:
                place += then if held & constant else otherwise
            case _:
                raise AssertionError(hex(operation))


THREAD = 0x003D0F00
"""Flags of ``clone`` as the C library sets them for a thread; CLONE_THREAD is one of them."""


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ((X86, 0), ALLOW),  # read
        ((X86, 59), ALLOW),  # execve
        ((X86, 57), EPERM),  # fork
        ((X86, 58), EPERM),  # vfork
        ((X86, 41), EPERM),  # socket
        ((X86, 319), EPERM),  # memfd_create
        ((X86, 435), ENOSYS),  # clone3
        ((X86, 56, THREAD), ALLOW),
        ((X86, 56, 17), EPERM),  # a process, with SIGCHLD
        ((X86, 56, 0x10000 << 32), EPERM),  # no flag, in the half that is not looked at
        ((X86, 0x40000000), EPERM),  # of the second set
        ((X86, 0x40000000 | 57), EPERM),
        ((X86, 0xFFFFFFFF), EPERM),
        ((I386, 2), KILL),  # fork, through the 32-bit door
        ((ARM, 0), KILL),
    ],
)
def test_the_filter_of_calls(call: tuple[int, ...], expected: int) -> None:
    assert verdict(call_filter("x86_64"), *call) == expected


def test_the_filter_of_another_machine() -> None:
    arm = call_filter("aarch64")
    assert verdict(arm, ARM, 220, THREAD) == ALLOW
    assert verdict(arm, ARM, 220, 17) == EPERM
    assert verdict(arm, ARM, 198) == EPERM
    assert verdict(arm, X86, 0) == KILL
    with pytest.raises(RewardError, match="x86_64 and aarch64, not those of s390x"):
        call_filter("s390x")


@pytest.mark.parametrize(
    ("machine", "header"),
    [
        ("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "asm-generic/unistd.h"),
    ],
)
def test_numbers_of_calls_are_the_kernels(machine: str, header: str) -> None:
    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip(f"compared with {path}: apt-get install linux-libc-dev")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())
    numbers = {name: int(number) for name, number in found}
    refused = CALLS[machine][1]
    assert refused == {name: numbers[name] for name in refused}


# ---- verdicts, in the sandbox --------------------------------------------------------------------


def judge(program: str, tests: dict[str, Any], *, seconds: int = 6) -> Judgement:
    verifier = CodeVerifier("tests", make_sandbox(seconds=seconds))
    return verifier.judge({"tests": tests}, answered(program))


@pytest.mark.parametrize(
    ("program", "judgement"),
    [
        ("print(sum(map(int, input().split())))", Judgement(Outcome.RIGHT)),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())))", Judgement(Outcome.RIGHT)),
        ("print(sum(map(int, open(0).read().split())))", Judgement(Outcome.RIGHT)),
        ("if __name__ == '__main__':\n    print(add(*map(int, input().split())))",
         Judgement(Outcome.RIGHT)),  # add is operator's
        ("print(math.floor(3.5))", Judgement(Outcome.WRONG, 1)),  # right for the first alone
        ("a, b = map(int, input().split())\nprint(a + b)\nexit(1)", Judgement(Outcome.RIGHT)),
        ("a, b = map(int, input().split())\nprint(a + b)\nraise ValueError('of mine')",
         Judgement(Outcome.CRASHED, 0, "ValueError: of mine")),
        ("print(", Judgement(Outcome.CRASHED, 0, "SyntaxError: '(' was never closed")),
        ("import os\nprint(3)\nos._exit(3)", Judgement(Outcome.CRASHED, 0)),
        ("import ctypes\nctypes.string_at(0)", Judgement(Outcome.CRASHED, 0)),
        ("", Judgement(Outcome.WRONG, 0)),
        ("def f():\n    return f()\nf()", Judgement(
            Outcome.CRASHED, 0, "RecursionError: maximum recursion depth exceeded")),
        ("print('\\ud83d')", Judgement(Outcome.CRASHED, 0, "UnicodeEncodeError")),
        ("print('3'); import os; os.write(1, bytes([255]))", Judgement(Outcome.WRONG, 0)),
    ],
)  # fmt: skip
def test_programs_that_read_standard_input(program: str, judgement: Judgement) -> None:
    found = judge(program, SUMS)
    assert found._replace(detail="") == judgement._replace(detail="")
    assert judgement.detail in found.detail


PAIRS = {
    "inputs": ['[1, 2]\n"a\u2028b"', '[]\n""'],
    "outputs": ['[3, "a\u2028b"]', '[0, ""]'],
    "fn_name": "work",
}


@pytest.mark.parametrize(
    ("program", "judgement"),
    [
        ("class Solution:\n    def work(self, numbers: List[int], name: str):\n"
         "        return [sum(numbers), name]", Judgement(Outcome.RIGHT)),
        ("def work(numbers, name):\n    print('so')\n    return sum(numbers), name",
         Judgement(Outcome.RIGHT)),  # a tuple is a list, what is printed is dropped
        ("def work(numbers, name):\n    return [3, 'a\\u2028b']", Judgement(Outcome.WRONG, 1)),
        ("def work(numbers, name):\n    return {1, 2}", Judgement(Outcome.CRASHED, 0)),
        ("def work(numbers):\n    return 1", Judgement(Outcome.CRASHED, 0)),
        ("def play(numbers, name):\n    return 1", Judgement(Outcome.CRASHED, 0)),
        ("print([3, 'a'])", Judgement(Outcome.CRASHED, 0)),
    ],
)  # fmt: skip
def test_programs_that_are_called(program: str, judgement: Judgement) -> None:
    assert judge(program, PAIRS)._replace(detail="") == judgement


def test_what_is_over_a_limit_is_a_time_out_with_its_reason() -> None:
    verifier = CodeVerifier("tests", make_sandbox(seconds=1))
    program = "if input() == '5 5':\n    while True: pass\nprint(3)"
    with pytest.raises(OverLimitError, match=r"^out of time in test 1$"):
        verifier({"tests": SUMS}, answered(program))


def test_a_verdict_through_the_workers() -> None:
    config = parse_config(
        {"rewards": [settings(test_seconds=1, weight=2.0)], "scoring": {"allow_code": True}}
    )
    scorer = build_scorer(config, task("tests"))
    programs = {
        "print(sum(map(int, input().split())))": (2.0, 1.0, None),
        "print(3)": (0.0, 0.0, None),
        "x = [0] * 10**12": (0.0, 0.0, "code: out of memory in test 0"),
        "print('x' * 10**6)": (0.0, 0.0, "code: output too long in test 0"),
    }
    try:
        scores = scorer.score([(problem(tests=SUMS), answer(answered(p))) for p in programs])
        (broken,) = scorer.score([(problem(tests={}), answer(answered("print(3)")))])
    finally:
        scorer.close()
    assert [(s.reward, s.verdict, s.error) for s in scores] == list(programs.values())
    assert [s.timed_out for s in scores] == [False, False, True, True]
    assert (broken.reward, broken.timed_out) == (None, False)
    assert "ValueError: tests must be a mapping" in (broken.error or "")
