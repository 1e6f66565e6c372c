"""Benchmarks from files in the public layouts. Every problem here is made up."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forkpoint.config.evaluation import BenchmarkConfig
from forkpoint.errors import ConfigError, DataError
from forkpoint.tasks.benchmarks import BENCHMARKS, HubSet, OpenBenchmark, open_benchmark
from forkpoint.tasks.benchmarks import open as module
from forkpoint.tasks.benchmarks.table import INSTRUCTIONS, PROMPTS
from forkpoint.verifiers import IntegerVerifier, MathVerifier

Q = "How many is three and four?"


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def opened(name: str, path: Path, **settings: Any) -> OpenBenchmark:
    return open_benchmark(BenchmarkConfig(name=name, path=str(path), **settings))


def gold(benchmark: OpenBenchmark) -> str:
    return benchmark.problems[0].columns["answer"]


# ---- layouts -------------------------------------------------------------------------------------

LAYOUTS = {
    # who writes it so: columns and kinds as they are public, contents invented
    "aime24 qwen": (
        "aime24",
        "test.jsonl",
        {"id": 1, "problem": Q, "solution": "..", "answer": "007", "url": "u", "question": Q},
        "007",
        "7",
    ),
    "aime24 maxwell-jia": (
        "aime24",
        "x.parquet",
        {"ID": "2024-I-1", "Problem": Q, "Solution": "so", "Answer": 7},
        "7",
        "7",
    ),
    "aime24 evalchemy": (
        "aime24",
        "aime24.json",
        {"id": 60, "problem": Q, "reference_solution": "..", "expected_answer": "7"},
        "7",
        "07",
    ),
    "aime25 math-ai": ("aime25", "x.jsonl", {"problem": Q, "answer": "7", "id": "0"}, "7", "7"),
    "aime25 matharena": (
        "aime25",
        "x.parquet",
        {"problem_idx": 1, "problem": Q, "answer": 7, "problem_type": ["Algebra"]},
        "7",
        "7",
    ),
    "amc23 floats": ("amc23", "x.jsonl", {"id": 0, "problem": Q, "answer": 7.0}, "7.0", "7"),
    "math500": (
        "math500",
        "test.jsonl",
        {
            "problem": Q,
            "solution": "Thus \\boxed{\\frac{14}{2}}.",
            "answer": "\\frac{14}{2}",
            "subject": "Algebra",
            "level": 1,
            "unique_id": "test/algebra/1.json",
        },
        "\\frac{14}{2}",
        "7",
    ),
    "minerva qwen": (
        "minerva",
        "test.jsonl",
        {"problem": Q, "solution": "So \\boxed{1} or \\boxed{7}.", "type": "t", "idx": 0},
        "7",
        "7",
    ),
    "minerva rllm": ("minerva", "x.json", {"problem": Q, "answer": "['7\\n']"}, "7", "7"),
    "minerva powers": (
        "minerva",
        "x.jsonl",
        {"question": Q, "answer": "1.6e-07"},
        "1.6 \\times 10^{-7}",
        "1.6 \\times 10^{-7}",
    ),
    "olympiad": (
        "olympiadbench",
        "test.jsonl",
        {
            "id": 1,
            "question": Q,
            "solution": ["long"],
            "final_answer": ["$7$", "$8$"],
            "is_multiple_answer": True,
            "unit": None,
            "answer_type": "Numerical",
            "error": None,
        },
        "$7$, $8$",
        "8, 7",
    ),
    "olympiad interval": (
        "olympiadbench",
        "x.parquet",
        {"question": Q, "final_answer": ["$[0, 7)$"]},
        "$[0, 7)$",
        "[0,7)",
    ),
    "gsm8k": (
        "gsm8k",
        "x.parquet",
        {"question": Q, "answer": "Three and four are <<3+4=7>>7.\n#### 1,007"},
        "1,007",
        "1007",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_public_layout_is_read_and_judged(layout: str, tmp_path: Path) -> None:
    name, file, row, expected, answer = LAYOUTS[layout]
    found = opened(name, write(tmp_path / file, row, row))
    assert [problem.id for problem in found.problems] == [f"{name}/1", f"{name}/2"]
    assert gold(found) == expected
    assert Q in str(found.problems[0].prompt)
    judge = {"integer": IntegerVerifier, "math": MathVerifier}[found.judge]("answer")
    columns = found.problems[0].columns
    assert judge(columns, f"so \\boxed{{{answer}}}") == 1.0
    assert judge(columns, "so \\boxed{5}") == 0.0
    size = BENCHMARKS[name].size
    assert found.notes == (f"{name} has {size} problems, and {tmp_path / file} has 2",)


def test_any_file_is_a_benchmark(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.jsonl", {"text": Q, "gold": 3}, {"text": "More?", "gold": "x + 1"}
    )
    found = opened("mine", path, question_column="text", answer_column="gold", samples=4)
    assert [problem.columns["answer"] for problem in found.problems] == ["3", "x + 1"]
    assert (found.judge, found.samples, found.temperature, found.notes) == ("math", 4, 1.0, ())
    assert found.held_out(1, seed=5) == [found.problems[0]]
    assert (
        len(opened("mine", path, question_column="text", answer_column="gold", problems=1).problems)
        == 1
    )
    with pytest.raises(DataError, match="for evaluation: there is nothing to train on"):
        found.problem(0)


# ---- prompts and settings ------------------------------------------------------------------------


def test_prompts(tmp_path: Path) -> None:
    path = write(
        tmp_path / "aime24.jsonl", {"problem": "Is {instruction} {question}?", "answer": 1}
    )
    asked = "Is {instruction} {question}?"  # places in a question are text
    boxed = "Please reason step by step, and put your final answer within \\boxed{}."

    def prompt(**settings: Any) -> Any:
        return opened("aime24", path, **settings).problems[0].prompt

    assert prompt() == f"User:\n{asked}\n{boxed}\n\nAssistant:\n"  # the paper's, to the character
    assert prompt(prompt="r1") == ({"role": "user", "content": f"{asked}\n{boxed}"},)
    said = INSTRUCTIONS["integer"]
    assert prompt(prompt="chat") == ({"role": "user", "content": f"{asked}\n\n{said}"},)
    own = prompt(prompt="chat", instruction="Say it.")
    assert own == ({"role": "user", "content": f"{asked}\n\nSay it."},)
    assert opened("aime24", path, prompt="chat", instruction="Now.").prompt == "{question}\n\nNow."


def test_settings_are_the_tables_where_nothing_else_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"problem": Q, "answer": 1})
    found = opened("aime24", path)
    assert (found.samples, found.temperature, found.max_new_tokens) == (16, 1.0, 20_480)
    found = opened("aime24", path, samples=4, temperature=0.6, max_new_tokens=100, verifier="math")
    assert (found.samples, found.temperature, found.max_new_tokens) == (4, 0.6, 100)
    assert found.judge == "math"


def test_the_table_can_be_used() -> None:
    assert set(BENCHMARKS) >= {
        *("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench", "gsm8k"),
        "livecodebench",
    }
    for benchmark in BENCHMARKS.values():
        assert benchmark.prompt in PROMPTS
        assert benchmark.hub
        assert (benchmark.size > 0) == (benchmark.verifier != "code")


def test_what_would_not_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="subset and split are read with path"):
        BenchmarkConfig(name="aime24", split="train")
    with pytest.raises(ValueError, match="instruction is read with prompt = 'chat'"):
        BenchmarkConfig(name="aime24", instruction="Say it.")
    with pytest.raises(ValueError, match="name"):
        BenchmarkConfig(name="../up")
    once = BenchmarkConfig.model_validate(BenchmarkConfig(name="a").model_dump())
    assert once == BenchmarkConfig(name="a")  # what a run's config.json holds is read again


# ---- files and the hub ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [
        "aime24.jsonl",
        "AIME_2024.parquet",
        "aime24/test.jsonl",  # Qwen2.5-Math's evaluation/data
        "AIME24/data/aime24.json",  # evalchemy's chat_benchmarks
    ],
)
def test_a_folder_of_files_is_looked_through(file: str, tmp_path: Path) -> None:
    write(tmp_path / file, {"problem": Q, "answer": 7})
    write(tmp_path / "aime25/test.jsonl", {"problem": Q, "answer": 8})
    write(tmp_path / "gsm8k/train.jsonl", {"question": Q, "answer": "#### 9"})
    found = open_benchmark(BenchmarkConfig(name="aime24"), str(tmp_path))
    assert (gold(found), found.source) == ("7", str(tmp_path / file))
    with pytest.raises(DataError, match=r"has no gsm8k\.jsonl .* there is .*gsm8k/train\.jsonl"):
        open_benchmark(BenchmarkConfig(name="gsm8k"), str(tmp_path))


@pytest.mark.parametrize(
    ("name", "file"),
    [("minerva", "minerva_math/test.jsonl"), ("olympiadbench", "olympiad_bench.json")],
)
def test_other_names_of_files(name: str, file: str, tmp_path: Path) -> None:
    write(tmp_path / file, {"problem": Q, "answer": "7"})
    assert gold(open_benchmark(BenchmarkConfig(name=name), str(tmp_path))) == "7"


def test_two_files_of_one_benchmark_are_refused(tmp_path: Path) -> None:
    for file in ("aime24.jsonl", "aime24/test.jsonl"):
        write(tmp_path / file, {"problem": Q, "answer": 7})
    with pytest.raises(DataError, match=r"test\.jsonl, .*aime24\.jsonl: which one\? Name it by"):
        open_benchmark(BenchmarkConfig(name="aime24"), str(tmp_path))
    with pytest.raises(DataError, match="there is no such folder"):
        open_benchmark(BenchmarkConfig(name="aime24"), str(tmp_path / "nowhere"))


def test_the_hub_is_tried_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read_hub(name: str, subset: str | None, split: str, where: str) -> list[dict[str, Any]]:
        asked.append((name, subset, split))
        if name != "Maxwell-Jia/AIME_2024":
            raise DataError(f"{where}: unreachable")
        return [{"Problem": Q, "Answer": 7}]

    monkeypatch.setattr(module, "read_hub", read_hub)
    found = open_benchmark(BenchmarkConfig(name="aime24"))
    assert [name for name, _, _ in asked] == ["HuggingFaceH4/aime_2024", "Maxwell-Jia/AIME_2024"]
    assert found.source == "Maxwell-Jia/AIME_2024, split train"
    with pytest.raises(
        DataError,
        match=r"benchmark gsm8k: the hub's openai/gsm8k: unreachable\. Where the hub cannot be "
        r"reached, give its file: --benchmark-dir DIR with gsm8k\.jsonl",
    ):
        open_benchmark(BenchmarkConfig(name="gsm8k"))
    assert asked[-1] == ("openai/gsm8k", "main", "test")
    assert str(HubSet("a/b", subset="c")) == "a/b, subset c, split test"


# ---- refused -------------------------------------------------------------------------------------


def test_a_name_nobody_knows() -> None:
    with pytest.raises(ConfigError, match=r"no benchmark 'aime_24'; did you mean 'aime24'\?"):
        open_benchmark(BenchmarkConfig(name="aime_24"))
    with pytest.raises(
        ConfigError, match=r"no benchmark 'zzz'\. There are aime24, aime25, .* path"
    ):
        open_benchmark(BenchmarkConfig(name="zzz"))


@pytest.mark.parametrize(
    ("settings", "row", "fault"),
    [
        ({}, {"a": 1, "b": 2}, r"no column 'problem' or .*; there are a, b: .* question_column"),
        ({}, {"problem": Q}, r"no column 'answer' or .*; there are problem: .* answer_column"),
        (
            {"answer_column": "anser"},
            {"problem": Q, "answer": 1},
            r"no column 'anser' \(answer_column\); there are answer, .*; did you mean 'answer'",
        ),
        (
            {},
            {"problem": Q, "answer": "1/2"},
            r"row 1: the answer '1/2' is no integer: set verifier",
        ),
        (
            {},
            {"problem": Q, "answer": None},
            r"row 1: the answer is None: expected text or a number",
        ),
        ({}, {"problem": Q, "answer": True}, r"the answer is True: expected text or a number"),
        ({}, {"problem": Q, "answer": " "}, r"the answer is ' ': expected text"),
        ({}, {"problem": Q, "answer": []}, r"the answer is \[\]: expected text"),
        ({}, {"problem": 3, "answer": 1}, r"row 1: the question is 3; expected text"),
        ({}, {"problem": Q, "solution": "7"}, r"the answer is '7': no \\boxed{} in the solution"),
    ],
)
def test_rows_that_cannot_be_used(
    settings: dict[str, Any], row: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "aime24.jsonl", row)
    with pytest.raises(DataError, match=f"benchmark aime24: .*{fault}"):
        opened("aime24", path, **settings)


def test_a_gold_that_only_looks_like_a_list_is_text(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"problem": Q, "answer": "['unclosed"})
    assert gold(opened("mine", path)) == "['unclosed"
    path = write(tmp_path / "y.jsonl", {"problem": Q, "answer": "[0, 1]"})  # an interval
    assert gold(opened("mine", path)) == "[0, 1]"
