"""LiveCodeBench's layout, in rows made up here: what is read, what is refused, what is not run."""

import base64
import contextlib
import json
import os
import pickle
import zlib
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.config import parse_config
from forkpoint.config.evaluation import BenchmarkConfig
from forkpoint.errors import ConfigError, DataError
from forkpoint.evaluation.benchmarks import REWARDS
from forkpoint.rewards import build_scorer
from forkpoint.tasks import livecodebench
from forkpoint.tasks.benchmarks import open as module
from forkpoint.tasks.benchmarks import open_benchmark
from forkpoint.tasks.livecodebench import Window, problems, text_of_pickle
from forkpoint.verifiers.code import CodeVerifier, Outcome, read_tests
from tests.sandboxed import answered, make_sandbox


def cases(*pairs: tuple[str, str], kind: str = "stdin") -> list[dict[str, str]]:
    return [{"input": given, "output": wanted, "testtype": kind} for given, wanted in pairs]


def packed(value: Any, protocol: int = pickle.DEFAULT_PROTOCOL) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


DOUBLE: dict[str, Any] = {
    "question_title": "Twice",
    "question_content": "Print twice the number {n}.",
    "platform": "atcoder",
    "question_id": "made_up_1",
    "contest_id": "made_up",
    "contest_date": "2024-11-02T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": json.dumps(cases(("1\n", "2\n"))),
    "private_test_cases": packed(json.dumps(cases(("21\n", "42\n"), ("-3\n", "-6\n")))),
    "metadata": "{}",
}
STARTER = "class Solution:\n    def twice(self, n: int) -> int:\n        "
CALLED: dict[str, Any] = {
    **DOUBLE,
    "platform": "leetcode",
    "question_id": "made_up_2",
    "starter_code": STARTER,
    "public_test_cases": json.dumps(cases(("1", "2"), kind="functional")),
    "private_test_cases": json.dumps(cases(("21", "42"), kind="functional")),
    "metadata": '{"func_name": "twice"}',
}


def test_rows_become_problems_with_all_their_tests() -> None:
    first, second = problems([DOUBLE, CALLED])
    assert (first.id, second.id) == ("made_up_1", "made_up_2")
    tests = {"inputs": ["1\n", "21\n", "-3\n"], "outputs": ["2\n", "42\n", "-6\n"], "fn_name": None}
    assert first.columns == {
        "question_title": "Twice",
        "platform": "atcoder",
        "difficulty": "easy",
        "contest_date": "2024-11-02T00:00:00",
        "tests": tests,
    }
    assert read_tests(second.columns["tests"]) == (("1", "21"), ("2", "42"), "twice")
    message: Any = first.prompt[0]
    assert message["content"].startswith("Print twice the number {n}.\n\n")
    assert "standard input" in message["content"]
    (plain,) = problems([CALLED], chat=False)
    assert isinstance(plain.prompt, str)
    assert f"```python\n{STARTER}\n```" in plain.prompt
    assert "standard input" not in plain.prompt


def test_programs_are_judged_by_these_tests() -> None:
    first, second = problems([DOUBLE, CALLED])
    verifier = CodeVerifier("tests", make_sandbox())
    right = answered("print(2 * int(input()))")
    assert verifier.judge(first.columns, right).outcome is Outcome.RIGHT
    assert verifier.judge(first.columns, answered("print(2)")).test == 1
    filled = answered(STARTER + "return 2 * n")
    assert verifier.judge(second.columns, filled).outcome is Outcome.RIGHT


@pytest.mark.parametrize(
    ("day", "inside"),
    [
        ("2024-07-31T23:59:59", False),
        ("2024-08-01T00:00:00", True),
        ("2025-02-01T00:00:00", True),
        ("2025-02-02", False),
        (datetime(2024, 12, 24, 12), True),
        (date(2023, 12, 24), False),
    ],
)
def test_the_fifth_window_is_august_2024_to_february_2025(day: Any, inside: bool) -> None:
    found = problems([{**DOUBLE, "contest_date": day}, {**CALLED, "contest_date": "2024-09-01"}])
    assert len(found) == 1 + inside


def test_windows_of_ones_own() -> None:
    old = {**DOUBLE, "contest_date": "2023-05-07"}
    assert len(problems([old, DOUBLE], None)) == 2
    assert problems([old, DOUBLE], Window(date(2023, 5, 7), date(2023, 5, 7)))[0].columns[
        "contest_date"
    ] == "2023-05-07"  # fmt: skip
    with pytest.raises(DataError, match=r"none of 1 rows .* of 2024-08-01 to 2025-02-01"):
        problems([old])
    with pytest.raises(DataError, match=r"none of 0 rows is a LiveCodeBench problem$"):
        problems([], None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"private_test_cases": "[]", "public_test_cases": "[]"}, "of the kinds \\[\\]"),
        ({"public_test_cases": json.dumps(cases(("1", "2"), kind="functional"))},
         r"of the kinds \['functional', 'stdin'\]; expected stdin alone, or functional alone"),
        ({"public_test_cases": '[{"input": "1"}]'}, "public_test_cases: a test is {'input': '1'}"),
        ({"public_test_cases": '[{"input": 1, "output": "2", "testtype": "stdin"}]'}, "all text"),
        ({"public_test_cases": "[1"}, "public_test_cases: not JSON"),
        ({"private_test_cases": None}, "private_test_cases: expected text, found None"),
        ({"private_test_cases": "?"}, "neither JSON nor base64 of zlib"),
        ({"private_test_cases": "AAAA"}, "neither JSON nor base64 of zlib"),
        ({"private_test_cases": packed("x" * 1000)[:20]}, "the packed tests are cut short"),
        ({"private_test_cases": packed("{}")}, "expected a list of tests, found {}"),
        ({"private_test_cases": packed("no json")}, "private_test_cases: not JSON"),
        ({"contest_date": "soon"}, "contest_date = 'soon' is no date"),
        ({"contest_date": None}, "contest_date = None is no date"),
        ({"metadata": "{"}, "metadata: not JSON"),
        ({"metadata": "[1]"}, r"metadata: expected an object, found \[1\]"),
        ({"metadata": 5}, "metadata: expected an object, found 5"),
        ({"question_content": None}, "question_content and starter_code are text"),
        ({"starter_code": ["x"]}, "question_content and starter_code are text"),
    ],
)  # fmt: skip
def test_a_row_that_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        problems([{**DOUBLE, **change}])
    assert "LiveCodeBench made_up_1" in str(caught.value)


def test_a_function_without_a_name_and_a_missing_column() -> None:
    with pytest.raises(DataError, match="the function's name, func_name, in metadata"):
        problems([{**CALLED, "metadata": "{}"}])
    row = {name: value for name, value in DOUBLE.items() if name != "metadata"}
    with pytest.raises(DataError, match="row 1 has no column 'metadata'"):
        problems([DOUBLE, row])


def test_tests_beyond_all_measure_are_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(livecodebench, "MOST_BYTES", 1 << 20)
    bomb = packed("0" * (1 << 26))
    assert len(bomb) < 1 << 20
    with pytest.raises(DataError, match="the packed tests are more than 1048576 bytes"):
        problems([{**DOUBLE, "private_test_cases": bomb}])


# ---- pickles are read, never run -----------------------------------------------------------------


@given(text=st.text(alphabet=st.characters()), protocol=st.integers(1, 5))
def test_the_pickle_of_a_text_is_read_as_pickle_reads_it(text: str, protocol: int) -> None:
    assert text_of_pickle(pickle.dumps(text, protocol), "here") == text


@pytest.mark.parametrize("length", [255, 256, 65_535, 65_536, 1_000_000])
def test_long_texts(length: int) -> None:
    assert text_of_pickle(pickle.dumps("é" * length), "here") == "é" * length


class Touch:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    for protocol in range(6):
        with pytest.raises(DataError, match=r"a pickle with the operation \w+: more than a text"):
            problems([{**DOUBLE, "private_test_cases": packed(Touch(touched), protocol)}])
    # the same, with the text that is looked for on top
    trick = pickle.dumps(Touch(touched))[:-1] + b"0" + pickle.dumps("[]")[2:]
    with pytest.raises(DataError, match="more than a text"):
        text_of_pickle(trick, "here")
    assert not touched.exists()
    pickle.loads(pickle.dumps(Touch(touched)))  # it would have run
    assert touched.exists()


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(["[]"]),
        pickle.dumps(7),
        pickle.dumps(b"[]"),
        pickle.dumps("[]", protocol=0),  # its escapes are read by an interpreter of their own
        pickle.dumps("[]") + b"more",
        pickle.dumps("[]")[:-1],
        b"\x80\x04.",
        b"\x80\x04\x8c\x01a\x8c\x01b.",
        b"",
        b"\xff",
    ],
)
def test_what_is_not_the_pickle_of_one_text_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^here: the packed tests are "):
        text_of_pickle(data, "here")


@given(data=st.binary(max_size=60), protocol=st.integers(0, 5))
def test_no_bytes_break_the_reader(data: bytes, protocol: int) -> None:
    for whole in (data, pickle.dumps("text", protocol)[:-1] + data, b"\x80\x04" + data + b"."):
        with contextlib.suppress(DataError):
            assert isinstance(text_of_pickle(whole, "here"), str)


def test_it_is_a_benchmark_that_is_read_from_files_or_the_hubs_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = {**DOUBLE, "question_id": "early", "contest_date": "2024-01-02T00:00:00"}
    rows = "".join(json.dumps(row) + "\n" for row in (DOUBLE, early, CALLED))
    (tmp_path / "livecodebench.jsonl").write_text(rows)
    found = open_benchmark(BenchmarkConfig(name="livecodebench"), str(tmp_path))
    assert [problem.id for problem in found.problems] == ["made_up_1", "made_up_2"]
    assert (found.judge, found.chat, found.samples) == ("code", True, 16)
    assert "tests" in found.columns
    assert found.notes == ()
    (tmp_path / "mine.jsonl").write_text(rows)
    mine = BenchmarkConfig(
        name="mine", path=str(tmp_path / "mine.jsonl"), verifier="code", problems=1
    )
    assert [problem.id for problem in open_benchmark(mine).problems] == ["made_up_1"]
    monkeypatch.setattr(module, "read_hub", lambda *_: [DOUBLE, early])
    found = open_benchmark(BenchmarkConfig(name="livecodebench"))
    assert found.source == "lighteval/code_generation_lite, subset release_v5, split test"
    assert [problem.id for problem in found.problems] == ["made_up_1"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("instruction", "Do it."), ("question_column", "q"), ("answer_column", "a")],
)
def test_settings_that_it_does_not_read_are_refused(name: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(DOUBLE) + "\n")
    given: dict[str, Any] = {"path": str(path), "verifier": "code", "prompt": "chat", name: value}
    with pytest.raises(ConfigError, match=f"{name} is not read where verifier = 'code'"):
        open_benchmark(BenchmarkConfig(name="mine", **given))


def test_its_programs_are_not_run_unless_that_is_switched_on(tmp_path: Path) -> None:
    (tmp_path / "livecodebench.jsonl").write_text(json.dumps(DOUBLE) + "\n")
    config = parse_config(
        {
            "evaluation": {
                "benchmarks": [{"name": "livecodebench", "prompt": "paper"}],
                "benchmark_dir": str(tmp_path),
            }
        }
    )
    opened = open_benchmark(config.evaluation.benchmarks[0], str(tmp_path))
    assert not opened.chat
    settled = config.model_copy(update={"rewards": (REWARDS["code"],)})
    with pytest.raises(ConfigError, match="allow_code = true"):
        build_scorer(settled, opened)
