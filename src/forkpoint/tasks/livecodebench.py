"""LiveCodeBench: rows of its data sets as problems with tests, for the reward ``code``.

A row holds its public tests as JSON, and its private ones as JSON or packed: base64 of zlib of a
pickle of JSON. A pickle is a program, and unpickling runs it; here nothing is unpickled. Its
operations are read one by one, and if they do anything but make one text, the row is refused.
"""

import base64
import binascii
import json
import pickletools
import zlib
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Any, NamedTuple

from forkpoint.errors import DataError
from forkpoint.runs.rows import short
from forkpoint.tasks.base import ask, require_column
from forkpoint.types import Problem

COLUMNS = (
    *("question_id", "question_content", "starter_code", "contest_date"),
    *("public_test_cases", "private_test_cases", "metadata"),
)
KEPT = ("question_title", "platform", "difficulty", "contest_date")
"""Columns that problems keep, where a row has them."""
TEXTS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
AROUND_A_TEXT = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP"}
"""What else stands in the pickle of a text."""
MOST_BYTES = 1 << 30
"""Of one row's tests, unpacked."""

WHOLE = """

Write a Python program that reads its input from standard input and writes its answer to standard \
output. End with the whole program in one block:

```python
# the program
```
"""
COMPLETED = """

Write your solution in Python on the basis of this code:

```python
{starter}
```

End with the whole solution in one block of the same form.
"""


class Window(NamedTuple):
    """Days of contests, both of them included."""

    first: date
    last: date


V5 = Window(date(2024, 8, 1), date(2025, 2, 1))
"""Of the results that are reported as LiveCodeBench v5 (2024.08 - 2025.02)."""


def problems(
    rows: Iterable[Mapping[str, Any]], window: Window | None = V5, *, chat: bool = True
) -> list[Problem]:
    """The rows of a window as problems, in their order, with all their tests as column ``tests``.

    The question is LiveCodeBench's, the instruction after it our own.

    Args:
        rows: as they are in ``code_generation`` and ``code_generation_lite``.
        window: of the contests' days; None: all.
        chat: ask through the model's chat template.

    Raises:
        DataError: a column is missing, tests cannot be read, or no row is of the window.
    """
    found, count = [], 0
    for count, row in enumerate(rows, 1):
        for name in COLUMNS:
            require_column(row.keys(), name, "LiveCodeBench's column", f"row {count - 1}")
        where = f"LiveCodeBench {row['question_id']}"
        day = _day(row["contest_date"], where)
        if window is None or window.first <= day <= window.last:
            found.append(_problem(row, where, chat=chat))
    if not found:
        days = f" of {window.first} to {window.last}" if window else ""
        raise DataError(f"none of {count} rows is a LiveCodeBench problem{days}")
    return found


def _problem(row: Mapping[str, Any], where: str, *, chat: bool) -> Problem:
    cases = [
        *_cases(row["public_test_cases"], f"{where}, public_test_cases"),
        *_cases(row["private_test_cases"], f"{where}, private_test_cases"),
    ]
    kinds = {case["testtype"] for case in cases}
    metadata = row["metadata"] or {}
    if isinstance(metadata, str):
        metadata = _json(metadata, f"{where}, metadata")
    if not isinstance(metadata, dict):
        raise DataError(f"{where}, metadata: expected an object, found {short(metadata, 40)}")
    function = metadata.get("func_name") if kinds == {"functional"} else None
    if kinds != {"stdin"} and not function:
        raise DataError(
            f"{where}: its tests are of the kinds {sorted(map(str, kinds))}; expected stdin alone, "
            "or functional alone and the function's name, func_name, in metadata"
        )
    starter, question = row["starter_code"] or "", row["question_content"]
    if not (isinstance(starter, str) and isinstance(question, str)):
        raise DataError(f"{where}: question_content and starter_code are text")
    question += COMPLETED.format(starter=starter) if starter else WHOLE
    tests = {
        "inputs": [case["input"] for case in cases],
        "outputs": [case["output"] for case in cases],
        "fn_name": function,
    }
    columns = {name: row[name] for name in KEPT if name in row}
    return Problem(
        id=str(row["question_id"]),
        prompt=ask(question, chat=chat),
        columns=columns | {"tests": tests},
    )


def _cases(value: Any, where: str) -> list[Mapping[str, str]]:
    """Tests as they are in a row: mappings with input, output and testtype, which are text."""
    if not isinstance(value, str):
        raise DataError(f"{where}: expected text, found {short(value, 40)}")
    packed = not value.lstrip().startswith("[")
    cases = _json(unpack(value, where) if packed else value, where)
    if not isinstance(cases, list):
        raise DataError(f"{where}: expected a list of tests, found {short(cases, 40)}")
    for case in cases:
        match case:
            case {"input": str(), "output": str(), "testtype": str()}:
                continue
        raise DataError(
            f"{where}: a test is {short(case, 80)}; expected input, output and testtype, all text"
        )
    return cases


def unpack(packed: str, where: str) -> str:
    """The text in base64 of zlib of its pickle.

    Raises:
        DataError: it is not that, it is larger than ``MOST_BYTES``, or the pickle is of more than
            a text.
    """
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(base64.b64decode(packed, validate=True), MOST_BYTES)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise DataError(f"{where}: neither JSON nor base64 of zlib: {error}") from error
    if not stream.eof:
        what = f"more than {MOST_BYTES} bytes" if stream.unconsumed_tail else "cut short"
        raise DataError(f"{where}: the packed tests are {what}")
    return text_of_pickle(data, where)


def text_of_pickle(data: bytes, where: str) -> str:
    """The text that a pickle makes, read without running it.

    Raises:
        DataError: it makes anything else, or is no pickle.
    """
    texts: list[str] = []
    end = 0
    try:
        for operation, argument, place in pickletools.genops(data):
            end = (place or 0) + 1
            if operation.name in TEXTS:
                texts.append(str(argument))
            elif operation.name not in AROUND_A_TEXT:
                raise DataError(
                    f"{where}: the packed tests are a pickle with the operation {operation.name}: "
                    "more than a text, so it could run code when it is read, and is not"
                )
    except ValueError as error:
        raise DataError(f"{where}: the packed tests are no pickle: {error}") from error
    if len(texts) != 1 or end != len(data):
        raise DataError(f"{where}: the packed tests are not the pickle of one text")
    return texts[0]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error


def _day(value: Any, where: str) -> date:
    try:
        found = value if isinstance(value, date) else datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: contest_date = {short(value, 40)} is no date") from error
    return found.date() if isinstance(found, datetime) else found
