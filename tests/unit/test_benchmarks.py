"""The committed result of ``make bench`` says what its own raw numbers say."""

import json
from typing import Any

import pytest

from benchmarks.bench import RESULTS, capture_overhead, headline
from benchmarks.tables import markdown


@pytest.fixture
def result() -> dict[str, Any]:
    return json.loads((RESULTS / "latest.json").read_text())


def test_the_headline_is_computed_from_the_raw_numbers(result: dict[str, Any]) -> None:
    assert {name: result[name] for name in result["headline"]} == headline(result["raw"])


def test_the_tables_are_of_this_result(result: dict[str, Any]) -> None:
    assert (RESULTS / "latest.md").read_text() == markdown(result)


def test_capture_overhead() -> None:
    # 1 of 11 seconds is 1 over the other 10; 1 of 5 is 1 over 4; 2 of 12 is 2 over 10
    sampling = {"capture_seconds": [1.0, 1.0, 2.0], "engine_seconds": [11.0, 5.0, 12.0]}
    assert capture_overhead(sampling) == pytest.approx(0.2)
