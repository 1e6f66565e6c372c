"""Evaluations and work on the page: totals, intervals and differences by hand."""

from pathlib import Path
from typing import Any

import pytest

from forkpoint.evaluation.statistics import wilson_interval
from forkpoint.report.evaluations import difference
from forkpoint.runs.evaluation import Benchmarks, BenchmarkScore, Comparison, Difference
from forkpoint.runs.results import Estimate, Evaluation, write_result
from tests.analysis_runs import interval
from tests.report_page import page_of
from tests.report_runs import make_run

EVALUATION = Evaluation(
    model="lab:game",
    task="lab:game",
    temperature=1.0,
    seed=17,
    samples=4,
    accuracy=interval(0.75, 0.125, 8),
    length_mean=12.0,
)


def test_the_difference_of_two_accuracies_by_newcombes_own_example() -> None:
    # Newcombe (1998), table II (a): 56/70 against 48/80, method 10 gives 0.0524 to 0.3339.
    a, b = (
        Estimate(value=k / n, low=low, high=high, n=n)
        for k, n in ((56, 70), (48, 80))
        for low, high in [wilson_interval(k, n)]
    )
    found = difference(a, b)
    assert (found.value, found.n) == (pytest.approx(0.2), 70)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def evaluated(step: int, value: float) -> dict[str, Any]:
    ends = {"eval/accuracy_low": value - 0.05, "eval/accuracy_high": value + 0.05}
    return {
        "step": step,
        "eval/accuracy": value,
        "eval/problems": 64,
        "eval/length_mean": 41.5,
        **ends,
    }


def test_every_evaluation_of_every_run_is_in_the_matrix(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", metrics=[evaluated(0, 0.25), evaluated(5, 0.5)])
    b = make_run(tmp_path / "b", metrics=[{"step": 1}, evaluated(5, 0.375)])
    write_result(b, EVALUATION)
    c = make_run(tmp_path / "c")  # where another task's problems were measured
    write_result(c, EVALUATION.model_copy(update={"task": "held.jsonl"}))
    text = page_of(a, b, c).words("evaluation")
    rows = [
        "a the laboratory's game 0 64 1 41.5 25.0 % [20.0, 30.0]",
        "a the laboratory's game 5 64 1 41.5 50.0 % [45.0, 55.0]",
        "b the laboratory's game 5 64 1 41.5 37.5 % [32.5, 42.5]",
        "b the laboratory's game – 8 4 12 75.0 % [62.5, 87.5]",
        "c held.jsonl – 8 4 12 75.0 % [62.5, 87.5]",
    ]
    places = [text.index(row) for row in rows]
    assert places == sorted(places)
    # b - a = -0.125; both half-widths are 0.05: sqrt(2) * 0.05 = 0.0707 on either side
    assert "Last evaluation minus that of a" in text
    assert "b 64 −12.5 % [−19.6, −5.4]" in text


def test_benchmarks_and_a_comparison_of_them_are_on_the_page(tmp_path: Path) -> None:
    run = tmp_path / "measured"
    numbers = {"temperature": 1.0, "samples": 16, "length_mean": 250.0}
    asked = {"source": "aime24.jsonl", "verifier": "integer", "prompt": "{question}", "chat": False}
    score = BenchmarkScore(name="aime24<b>", accuracy=interval(0.25, 0.125, 30), **numbers, **asked)
    write_result(run, Benchmarks(model="m", seed=1, benchmarks=(score,)))
    change = Difference(
        name="aime24<b>",
        samples=16,
        first=0.25,
        second=0.3125,
        difference=interval(0.0625, 0.03125, 30),
        sampling_error=0.01,
    )
    compared = Comparison(
        first="runs/a", second="runs/b", first_model="m", second_model="n", differences=(change,)
    )
    write_result(run, compared)
    text = page_of(run).words("evaluation")
    assert "measured aime24<b> – 30 16 250 25.0 % [12.5, 37.5]" in text
    assert "Second minus first, paired by problem" in text
    assert "aime24<b> a b 30 6.2 % [3.1, 9.4]" in text


def test_an_evaluated_directory_gets_a_page(tmp_path: Path) -> None:
    run = tmp_path / "evaluated"
    write_result(run, EVALUATION)
    page = page_of(run)
    assert list(page.sections) == ["evaluation", "provenance"]
    assert "nothing was trained" in page.words()


def test_work_is_added_up_before_it_is_divided(tmp_path: Path) -> None:
    lines = [
        {
            "step": 1,
            "work/flops": 10.0,
            "work/dense_flops": 100.0,
            "work/body_tokens": 1000.0,
            "work/head_rows": 7.0,
            "memory/peak_gb": 1.5,
            "work/flops_saved_fraction": 0.9,
        },
        {
            "step": 2,
            "work/flops": 30.0,
            "work/dense_flops": 60.0,
            "work/body_tokens": 500.0,
            "work/head_rows": 3.0,
            "memory/peak_gb": 1.25,
            "work/flops_saved_fraction": 0.5,
        },
    ]
    tokens = [
        {"step": 1, "work/body_tokens": 50.0, "work/tokens_saved_fraction": 0.5},
        {"step": 2, "work/body_tokens": 90.0, "work/tokens_saved_fraction": 0.1},
    ]
    a = make_run(tmp_path / "a", metrics=lines)
    b = make_run(tmp_path / "b", metrics=tokens)
    text = page_of(a, b, make_run(tmp_path / "c")).words("training")
    # 1 - 40 / 160; the mean of the two steps would be 70 %
    assert "a 1,500 10 40 160 75.0 % 1.50 GB" in text
    # Dense: 50 / 0.5 + 90 / 0.9 = 200, of which 140 were run
    assert "b 140 – – – 30.0 % –" in text
    assert "c – – – – – –" in text
    assert "work/flops_saved_fraction" in text  # the panel prefers operations to tokens
    assert "Work of the optimiser" not in page_of(make_run(tmp_path / "d")).words()
