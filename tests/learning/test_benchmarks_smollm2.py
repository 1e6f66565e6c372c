"""Benchmarks on a real language model, from files in public layouts: see examples/benchmarks."""

import json
import sys
from pathlib import Path

import pytest

from forkpoint.cli import main as main_module
from forkpoint.runs.completions import part_files, read_completions
from forkpoint.runs.evaluation import Benchmarks
from forkpoint.runs.results import find_result

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "examples" / "benchmarks" / "smollm2.toml"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / "models" / "smollm2" / "config.json").exists(), reason="run make smollm2 first"
    ),
]


def test_made_up_problems_from_files_to_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)  # the recipe's paths are from there

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["forkpoint", "eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main_module.main()
        assert caught.value.code == 0
        return capsys.readouterr().out

    few = ("--problems", "3", "--samples", "4", "--set", "rollout.batch_sequences=12")
    first, second = tmp_path / "first", tmp_path / "second"
    printed = json.loads(run(RECIPE, "--run-dir", first, *few))
    assert [one["name"] for one in printed["benchmarks"]] == ["aime24", "amc23", "math500"]
    found = find_result(first, Benchmarks)
    assert found is not None
    assert [one.verifier for one in found.benchmarks] == ["integer", "integer", "math"]
    for one in found.benchmarks:
        rows = list(read_completions(part_files(first / "completions/benchmarks" / one.name)))
        assert len(rows) == 12
        assert all(row.prompt.startswith("User:\nWhat is") for row in rows)
        verdicts = [row.score.verdict for row in rows]
        assert [float(r) for p in one.problems for r in p.right] == verdicts
        assert one.pass_at[1].value == pytest.approx(one.accuracy.value)
        assert one.majority_at[1].value == pytest.approx(one.accuracy.value)
        assert one.pass_at[4].value >= one.pass_at[2].value >= one.pass_at[1].value
    answered = [a for one in found.benchmarks for p in one.problems for a in p.answers]
    assert sum(a is not None for a in answered) > 18  # most of the 36 write a box

    run(RECIPE, "--run-dir", second, *few, "--set", "evaluation.seed=1")
    compared = json.loads(run("--compare", first, second))
    assert [one["name"] for one in compared["differences"]] == ["aime24", "amc23", "math500"]
    again = json.loads(run("--compare", first, first))
    assert {one["difference"]["value"] for one in again["differences"]} == {0.0}
