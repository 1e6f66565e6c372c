"""Programs: the last one of a completion is run in a sandbox, and what it says is compared here.

Nothing inside the sandbox judges. The program gets one test's input at a time and never an answer,
so the most it can do to its guard is to be wrong.

Outputs are compared as LiveCodeBench compares them. Of a program that reads standard input: without
white space around the whole and around each line, both must have equally many lines, each the same
text or the same row of decimal numbers, exactly (``1.0`` is ``1``, ``0.33`` is not ``0.333``). Of a
function: what it returns must equal the answer, as JSON (a tuple is a list, ``1.0`` is ``1``).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, NamedTuple

from forkpoint.verifiers.answers import after_thinking
from forkpoint.verifiers.inside import OUT_OF_MEMORY
from forkpoint.verifiers.sandbox import Ran, Sandbox
from forkpoint.verifiers.text import OverLimitError, column

PYTHON = ("", "py", "python", "python3")
"""Languages of a block of code that is taken for Python, in lower case."""
FENCE = re.compile(r"([ \t]*+)(`{3,}+)[ \t]*+([\w+#.-]*+)[^`]*+")
"""A line that opens or closes a block: indentation, backticks, language, what else. Nothing is ever
given back, so that it takes time in proportion to the line."""
OUT_OF_SECONDS = 128 + 24
"""The exit status of a program that SIGXCPU ended."""
SPARE_OUTPUT = 1 << 16
"""Bytes a program may write beyond twice the answer's."""
MOST_DETAIL = 200


class Outcome(StrEnum):
    """What came of a completion's program; the first test that it does not pass says which."""

    RIGHT = "right"
    WRONG = "wrong answer"
    CRASHED = "crashed"
    TIME = "out of time"
    MEMORY = "out of memory"
    OUTPUT = "output too long"
    NO_PROGRAM = "no program"


OVER_LIMIT = (Outcome.TIME, Outcome.MEMORY, Outcome.OUTPUT)


class Judgement(NamedTuple):
    """The outcome, and where it was found."""

    outcome: Outcome
    test: int | None = None
    """The number of the test that it did not pass, from 0."""
    detail: str = ""
    """The last line of a crash; it comes from the program and is hostile text."""


class Tests(NamedTuple):
    """Inputs, and the answer to each."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    function: str
    """The function to be called, each line of an input being an argument as JSON; or nothing: the
    program reads standard input."""


@dataclass(frozen=True, slots=True)
class CodeVerifier:
    """1.0 if the program passes every test of its problem, else 0.0."""

    tests_column: str
    sandbox: Sandbox

    def __call__(self, columns: Mapping[str, Any], text: str) -> float:
        """
        Raises:
            OverLimitError: the program used up its time, memory or output.
            ValueError: the column holds no tests. RewardError: the sandbox did not come up.
        """
        found = self.judge(columns, text)
        if found.outcome in OVER_LIMIT:
            raise OverLimitError(f"{found.outcome} in test {found.test}")
        return float(found.outcome is Outcome.RIGHT)

    def judge(self, columns: Mapping[str, Any], text: str) -> Judgement:
        """Run the tests in order, up to the first that is not passed; each runs the program anew.

        Raises:
            ValueError: the column holds no tests. RewardError: the sandbox did not come up.
        """
        tests = read_tests(column(columns, self.tests_column))
        program = last_program(text)
        if program is None:
            return Judgement(Outcome.NO_PROGRAM)
        for number, (given, answer) in enumerate(zip(tests.inputs, tests.outputs, strict=True)):
            ran = self.sandbox.run(
                program,
                given.encode(errors="surrogatepass"),
                most_output=2 * len(answer.encode(errors="surrogatepass")) + SPARE_OUTPUT,
                function=tests.function,
            )
            outcome = _outcome(ran, answer, tests.function)
            if outcome is not Outcome.RIGHT:
                detail = _last_line(ran) if outcome is Outcome.CRASHED else ""
                return Judgement(outcome, number, detail)
        return Judgement(Outcome.RIGHT)


def last_program(text: str) -> str | None:
    """The last closed block of Python after the end of thinking, or None.

    A block without a language counts as Python. A fence that names a language opens a block even
    where one is open: nobody closed that.
    """
    lines = after_thinking(text).split("\n")
    program, opened = None, None
    for number, line in enumerate(lines):
        fence = FENCE.fullmatch(line.rstrip())
        if fence is None:
            continue
        if opened is None or fence[3]:
            opened = fence, number
        elif len(fence[2]) >= len(opened[0][2]):
            (indent, _, language), first = opened[0].groups(), opened[1]
            if language.lower() in PYTHON:
                block = lines[first + 1 : number]
                program = "\n".join(line.removeprefix(indent) for line in block)
            opened = None
    return program


def read_tests(value: Any) -> Tests:
    """Tests from ``{"inputs": [..], "outputs": [..], "fn_name": ..}`` or the JSON text of that.

    Raises:
        ValueError: it is something else, or holds no test.
    """
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping) or not {"inputs", "outputs"} <= value.keys():
        raise ValueError("tests must be a mapping with inputs and outputs")
    inputs, outputs = tuple(value["inputs"]), tuple(value["outputs"])
    if not inputs or len(inputs) != len(outputs):
        raise ValueError(f"tests have {len(inputs)} inputs and {len(outputs)} outputs")
    if not all(isinstance(part, str) for part in inputs + outputs):
        raise ValueError("inputs and outputs of tests must be text")
    return Tests(inputs, outputs, value.get("fn_name") or "")


def same_output(found: str, answer: str) -> bool:
    """Whether two outputs are equal, line by line; see the module."""
    lines, wanted = _lines(found), _lines(answer)
    return len(lines) == len(wanted) and all(map(_same_line, lines, wanted))


def same_value(found: str, answer: str) -> bool:
    """Whether two values are equal that are written as JSON.

    Raises:
        ValueError: the answer is no JSON.
    """
    wanted = json.loads(answer)
    try:
        return json.loads(found) == wanted
    except (ValueError, RecursionError):  # what a program writes may be anything
        return False


def _outcome(ran: Ran, answer: str, function: str) -> Outcome:
    if ran.stopped == "time" or ran.status == OUT_OF_SECONDS:
        return Outcome.TIME
    if ran.stopped == "output":
        return Outcome.OUTPUT
    if ran.status == OUT_OF_MEMORY:
        return Outcome.MEMORY
    if ran.status:
        return Outcome.CRASHED
    same = same_value if function else same_output
    return Outcome.RIGHT if same(ran.output.decode(errors="replace"), answer) else Outcome.WRONG


def _last_line(ran: Ran) -> str:
    lines = ran.errors.decode(errors="replace").split("\n")
    return next((line[:MOST_DETAIL] for line in reversed(lines) if line.strip()), "")


def _lines(output: str) -> list[str]:
    return [line.strip() for line in output.strip().split("\n")]


def _same_line(found: str, answer: str) -> bool:
    if found == answer:
        return True
    try:
        return [Decimal(n) for n in found.split()] == [Decimal(n) for n in answer.split()]
    except InvalidOperation:  # a word, or a number that cannot be compared
        return False
