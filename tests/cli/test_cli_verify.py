"""``forkpoint verify``: what it prints, what it refuses, how it ends."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forkpoint.cli import main as main_module
from forkpoint.errors import DataError
from forkpoint.rewards import audit as audit_module
from forkpoint.rewards.audit import Case, Judged, Verdict, disagrees, read_cases, verdict_of
from forkpoint.rewards.worker import Part

Run = Callable[..., tuple[int, str, str]]
PATIENT = ("--timeout-s", "120")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("COLUMNS", "80")

    def verify(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["forkpoint", "verify", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main_module.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return verify


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def obeys(columns: Mapping[str, Any], text: str) -> float | None:
    """A verifier that does what the completion says."""
    if text == "hang":
        time.sleep(600)
    if text == "raise":
        raise ValueError("\x1b]0;owned\x07")
    return {"right": 1.0, "wrong": 0.0}.get(text)


def judged(expected: Verdict | None, math: Verdict, integer: Verdict) -> Judged:
    return Judged(Case(1, "7", "7", expected), {"math": math, "integer": integer}, {})


# ---- what is said --------------------------------------------------------------------------------


def test_json_has_the_verdict_of_every_verifier_on_every_row(run: Run, tmp_path: Path) -> None:
    file = write(
        tmp_path / "rows.jsonl",
        {"gold": "1/2", "answer": r"\boxed{0.5}", "expected": "right"},
        {"gold": 7, "answer": r"\boxed{8}", "expected": "wrong", "trap": "another column"},
        {"gold": "12", "answer": r"\boxed{3 \cdot 4}", "expected": None},
    )
    code, out, err = run(file, "--json", *PATIENT)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["pairs"] == [
        {
            "gold": "1/2",
            "answer": r"\boxed{0.5}",
            "expected": "right",
            "verdict": "right",
            "by_verifier": {"math": "right", "integer": "unparseable gold"},
        },
        {
            "gold": 7,
            "answer": r"\boxed{8}",
            "expected": "wrong",
            "verdict": "wrong",
            "by_verifier": {"math": "wrong", "integer": "wrong"},
        },
        {
            "gold": "12",
            "answer": r"\boxed{3 \cdot 4}",
            "expected": None,
            "verdict": "right",
            "by_verifier": {"math": "right", "integer": "wrong"},
        },
    ]
    assert found["summary"]["rows"] == 3
    assert found["summary"]["disagreements"] == 1  # the last row
    assert found["summary"]["by_verifier"]["integer"] == {
        "right": 0,
        "wrong": 2,
        "unparseable gold": 1,
        "exception": 0,
        "hang": 0,
        "contradicted": 0,
        "hang_seconds": 0.0,
    }


def test_hang_exception_and_unparseable_gold_are_three_verdicts_and_stop_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "TEXT_VERIFIERS", {"math": obeys, "integer": obeys})
    texts = ["hang", "right", "raise", "wrong", "what?"]
    rows = [{"gold": "\x1b[2J\u202e", "answer": text, "expected": "right"} for text in texts]
    file = write(tmp_path / "rows.jsonl", *rows)
    code, out, _ = run(file, "--json", "--timeout-s", "3", "--verifier", "integer")
    found = json.loads(out)
    assert code == 1
    assert [pair["verdict"] for pair in found["pairs"]] == [
        *("hang", "right", "exception", "wrong", "unparseable gold")
    ]
    assert found["summary"]["unexpected"] == 4
    assert found["summary"]["by_verifier"]["math"]["hang_seconds"] == 3.0
    assert out.isascii()
    assert "\x1b" not in out
    code, out, _ = run(file, "--timeout-s", "3")
    assert code == 1
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert r"\x1b[2J\u202e" in out
    assert "ValueError" in out
    assert "5 rows" in out
    assert "hang 1 (3 s)" in out


def test_an_expected_hang_is_no_surprise() -> None:
    assert not disagrees(judged("hang", "hang", "wrong"), "math")
    assert disagrees(judged("wrong", "hang", "wrong"), "math")
    assert not disagrees(judged("wrong", "wrong", "hang"), "math")


@pytest.mark.parametrize(
    ("expected", "math", "integer", "listed"),
    [
        ("right", "right", "right", False),
        ("right", "right", "unparseable gold", False),  # it has no opinion
        ("right", "right", "wrong", True),
        ("right", "wrong", "wrong", True),
        ("wrong", "unparseable gold", "right", True),
        (None, "right", "wrong", True),
        (None, "hang", "wrong", False),
        (None, "right", "right", False),
    ],
)
def test_what_a_disagreement_is(
    expected: Verdict | None, math: Verdict, integer: Verdict, listed: bool
) -> None:
    assert disagrees(judged(expected, math, integer), "math") == listed


@pytest.mark.parametrize(
    ("part", "verdict"),
    [
        (Part(1.0), "right"),
        (Part(0.0), "wrong"),
        (Part(None), "unparseable gold"),
        (Part(None, "ValueError: no"), "exception"),
        (Part(None, "out of memory: more than scoring.memory_gb = 4", True), "exception"),
        (Part(None, "timeout after 4 s", True), "hang"),
    ],
)
def test_verdicts_of_parts(part: Part, verdict: str) -> None:
    assert verdict_of(part) == verdict


# ---- what is read --------------------------------------------------------------------------------


def test_parquet_is_read_and_absent_expectations_are_none(tmp_path: Path) -> None:
    columns = {"gold": ["7", "8"], "answer": ["a", "b"], "expected": [True, None]}
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    assert read_cases(path) == [Case(1, "7", "a", "right"), Case(2, "8", "b", None)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"gold": "7"}, r"row 2 has no column 'answer'; it has gold"),
        ({"answer": "7"}, r"row 2 has no column 'gold'; it has answer"),
        (["7", "7"], r"row 2 is not an object with columns but list"),
        ({"gold": None, "answer": "7"}, r"row 2: gold is None; expected text or a number"),
        ({"gold": True, "answer": "7"}, r"row 2: gold is True; expected text"),
        ({"gold": float("inf"), "answer": "7"}, r"row 2: gold is inf; expected text"),
        ({"gold": ["7"], "answer": "7"}, r"row 2: gold is \['7'\]; expected text"),
        ({"gold": "7", "answer": 7}, r"row 2: answer is 7; expected the completion's text"),
        ({"gold": "7", "answer": "7", "expected": 1}, r"row 2: expected is 1; it must be one of"),
        ({"gold": "7", "answer": "7", "expected": "Right"}, r"row 2: expected is 'Right'; it must"),
        ({"gold": "7", "answer": "7", "expected": ["wrong"]}, r"row 2: expected is \['wrong'\];"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_its_number(
    row: Any, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", {"gold": "7", "answer": "7"}, row)
    with pytest.raises(DataError, match=message):
        read_cases(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rows.jsonl", "--timeout-s", "0"], "--timeout-s must be"),
        (["rows.jsonl", "--timeout-s", "nan"], "--timeout-s must be"),
        (["raws.jsonl"], "did you mean rows.jsonl?"),
        (["empty.jsonl"], "empty.jsonl has no rows"),
        (["broken.jsonl"], "broken.jsonl, row 1 is not JSON"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", {"gold": "7", "answer": "7"})
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "broken.jsonl").write_text("{")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
