"""What each text verifier gets right and wrong today, over the traps of mathematical answers.

In ``tests/data/verifier_cases.jsonl`` ``expected`` is a mathematician's verdict; ``today`` names
the verifiers that say something else. A change there is an improvement or a regression.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from forkpoint.errors import ConfigError
from forkpoint.rewards.audit import VERDICTS, audit, read_cases

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "data" / "verifier_cases.jsonl"
PATIENT_S, BRIEF_S = 120.0, 2.0
"""Limits for what ends by itself, however busy the machine, and for what hangs."""


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]


def test_the_cases_are_many_and_each_is_another() -> None:
    cases = rows()
    assert len(cases) >= 300
    assert len({(case["gold"], case["answer"]) for case in cases}) == len(cases)
    traps = Counter(case["trap"] for case in cases)
    assert len(traps) >= 35
    assert max(traps.values()) < len(cases) / 10
    assert {case["expected"] for case in cases} == {"right", "wrong"}
    for case in cases:
        for verdict in case.get("today", {}).values():
            assert verdict in set(VERDICTS) - {case["expected"]}


def test_an_audit_without_math_verify_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'forkpoint\[math\]'"):
        audit(read_cases(CASES)[:1], timeout_s=1.0)


@pytest.mark.slow
def test_each_verifier_errs_on_the_known_cases_and_on_no_other() -> None:
    known, cases = rows(), read_cases(CASES)
    hanging = [i for i, row in enumerate(known) if "hang" in row.get("today", {}).values()]
    quick = [i for i in range(len(cases)) if i not in hanging]
    changed = []
    for numbers, limit_s in ((quick, PATIENT_S), (hanging, BRIEF_S)):
        for i, one in zip(
            numbers, audit([cases[i] for i in numbers], timeout_s=limit_s), strict=True
        ):
            row = known[i]
            today = row.get("today", {})
            changed += [
                (i + 1, row["trap"], row["gold"], row["answer"], f"{name} says {verdict}")
                for name, verdict in one.by_verifier.items()
                if verdict != today.get(name, row["expected"])
            ]
    assert changed == []


def test_the_documentation_counts_the_known_errors() -> None:
    # the table of docs/verify.md: | trap | cases | math: false right | false wrong | integer: .. |
    page = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    counts: dict[str, Counter[str]] = {}
    for row in rows():
        count = counts.setdefault(row["trap"], Counter())
        count["cases"] += 1
        for name, verdict in row.get("today", {}).items():
            count[f"{name} {verdict}"] += 1
    columns = ("cases", "math right", "math wrong", "math hang", "integer right", "integer wrong")
    for trap, count in counts.items():
        assert f"| {trap} | {' | '.join(str(count[column]) for column in columns)} |" in page
