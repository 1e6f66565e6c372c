"""``forkpoint verify``."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from forkpoint.cli.terminal import SafeConsole
from forkpoint.errors import ConfigError

if TYPE_CHECKING:
    from forkpoint.rewards.audit import Judged

UNEXPECTED = 1
"""The exit code when a verdict is not the expected one."""
SHOWN = 100
"""Characters of a gold or an answer in the list."""


def verify(
    file: Path,
    *,
    verifier: Literal["math", "integer"] = "math",
    timeout_s: float = 4.0,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Grade answers with every text verifier and list what they disagree on. No model is needed.

    The exit code is 1 if the verdict on some row is not the expected one.

    Parameters
    ----------
    file
        JSONL or parquet with the columns gold, answer (a completion) and maybe expected.
    verifier
        Whose verdict is a row's verdict, the one you train with.
    timeout_s
        Seconds after which a verifier is killed: its verdict is then hang.
    as_json
        Print every row's verdicts as JSON.
    """
    from forkpoint.rewards.audit import audit, read_cases, summarise

    if not 0 < timeout_s < float("inf"):
        raise ConfigError("--timeout-s must be a number of seconds above 0")
    cases = read_cases(file)
    console = SafeConsole(stderr=as_json)
    started = time.monotonic()
    with console.stoppable("nothing is kept") as stop:
        judged = audit(cases, timeout_s=timeout_s, should_stop=stop)
    summary = summarise(judged, verifier, timeout_s)
    summary["seconds"] = round(time.monotonic() - started, 3)
    if as_json:
        _print_json(judged, verifier, summary)
    else:
        _show(console, judged, verifier, summary)
    return UNEXPECTED if summary["unexpected"] else 0


def _print_json(judged: "list[Judged]", verifier: str, summary: dict[str, Any]) -> None:
    document = {
        "pairs": [
            {
                "gold": one.case.gold,
                "answer": one.case.answer,
                "expected": one.case.expected,
                "verdict": one.by_verifier[verifier],
                "by_verifier": dict(one.by_verifier),
            }
            for one in judged
        ],
        "verifier": verifier,
        "errors": [
            {"row": one.case.row, "verifier": name, "error": error}
            for one in judged
            for name, error in one.errors.items()
        ],
        "summary": summary,
    }
    # ASCII: what would move a terminal's cursor is escaped
    print(json.dumps(document, indent=2).replace("\x7f", "\\u007f"))


def _show(
    console: SafeConsole, judged: "list[Judged]", verifier: str, summary: dict[str, Any]
) -> None:
    from forkpoint.rewards.audit import VERDICTS, disagrees

    for one in judged:
        if disagrees(one, verifier) or one.errors:
            _show_one(console, one)
    expected = sum(one.case.expected is not None for one in judged)
    console.title(
        f"{summary['rows']} rows, {summary['disagreements']} disagreements, "
        f"{summary['seconds']:.1f} s"
    )
    for name, of in summary["by_verifier"].items():
        counts = ", ".join(f"{verdict} {of[verdict]}" for verdict in VERDICTS)
        console.say(f"  {name}: {counts} ({of['hang_seconds']:g} s)")
        if expected:
            console.say(f"  {name}: contradicts the file on {of['contradicted']} rows")
    if expected:
        console.say(
            f"  {verifier}: {summary['unexpected']} of {expected} verdicts are not as expected"
        )


def _show_one(console: SafeConsole, one: "Judged") -> None:
    """A row that somebody should look at; whatever the file says in it stays on its line."""
    said = ", ".join(f"{name} {verdict}" for name, verdict in one.by_verifier.items())
    expected = "" if one.case.expected is None else f", expected {one.case.expected}"
    console.say(f"row {one.case.row}: {said}{expected}")
    gold, answer = str(one.case.gold), one.case.answer
    console.note(f"gold   {gold if len(gold) <= SHOWN else gold[:SHOWN] + '..'}")
    console.note(f"answer {answer if len(answer) <= SHOWN else '..' + answer[-SHOWN:]}")
    for name, error in one.errors.items():
        console.note(f"{name}: {error}")
