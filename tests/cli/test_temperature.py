"""``forkpoint temperature`` as a user meets it."""

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forkpoint.analysis import temperature as analysis
from forkpoint.cli import main as main_module
from forkpoint.config.stages import ModelConfig
from forkpoint.errors import Interrupted
from forkpoint.lab import GameWorld, draw_problem, verify
from forkpoint.policy.load import load_model
from forkpoint.runs.results import Temperature, TemperaturePoint, read_result, result_path
from forkpoint.sampling import SampleRequest
from forkpoint.sampling.base import SamplingSettings, SplitTemperature
from forkpoint.sampling.rows import PLAIN
from forkpoint.sampling.transformers import TransformersEngine
from forkpoint.types import Prompt

USER_ERROR = 2


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["forkpoint", "temperature", *arguments])
        with pytest.raises(SystemExit) as caught:
            main_module.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run


Here = Callable[..., tuple[int, str, str]]


def test_on_the_laboratory(here: Here, tmp_path: Path) -> None:
    arguments = (
        "--model lab:game --task lab:game --run-dir D --problems 4 --samples 2 --temperatures 0.5"
    )
    code, out, _ = here(*arguments.split(), "--set", "rollout.max_new_tokens=60")
    assert code == 0
    found = read_result(result_path(tmp_path / "D", Temperature), Temperature)
    assert (found.problems, found.samples) == (4, 2)
    for sweep in found.sweeps:
        for point in sweep.points:
            assert_measured(point, sweep.varied, found.entropy_threshold)
    entropies = [h for c in sampled(None) for h in c.entropies]
    assert found.entropy_threshold == pytest.approx(float(np.percentile(entropies, 80)), abs=1e-5)
    # the table: two points of each sweep
    rows = re.findall(r"^ *(\S+) +(\S+) +(\d+\.\d) % \[", out, re.MULTILINE)
    assert [row[:2] for row in rows] == [("0.5", "1"), ("1", "1"), ("1", "0.5"), ("1", "1")]
    values = [p.accuracy.value for sweep in found.sweeps for p in sweep.points]
    assert [float(row[2]) for row in rows] == [100 * value for value in values]


def sampled(split: SplitTemperature | None) -> list[Any]:
    """What the engine answers to the same requests."""
    loaded = load_model(ModelConfig(path="lab:game"))
    problems = [
        draw_problem(GameWorld(), seed=20_000, serial=n, split="held_out") for n in range(4)
    ]
    prompts = [
        Prompt(problem=p, token_ids=tuple(loaded.tokenizer(p.prompt)["input_ids"]))
        for p in problems
    ]
    requests = [
        SampleRequest(prompt=prompt, serial=n, sample=sample)
        for n, prompt in enumerate(prompts)
        for sample in range(2)
    ]
    settings = SamplingSettings(
        max_new_tokens=60, temperature=1.0, seed=20_000, step=0, purpose="temperature", split=split
    )
    return TransformersEngine(loaded, decoding=PLAIN, batch_sequences=512).sample(
        requests, settings
    )


def assert_measured(point: TemperaturePoint, varied: str, threshold: float) -> None:
    """A point of the file against answers sampled and verified here."""
    pair = (point.temperature, 1.0) if varied == "forks" else (1.0, point.temperature)
    made = sampled(SplitTemperature(threshold_nats=threshold, above=pair[0], below=pair[1]))
    world = GameWorld()
    right = [
        verify(
            world,
            draw_problem(world, seed=20_000, serial=line // 2, split="held_out").columns,
            completion.text,
        )
        for line, completion in enumerate(made)
    ]
    assert point.accuracy.value == sum(right) / 8
    assert point.length_mean == sum(len(c.token_ids) for c in made) / 8
    assert point.truncated_fraction == sum(c.finish_reason == "length" for c in made) / 8
    assert (point.difference is None) == (pair == (1.0, 1.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--threshold 0.5 --percentile 80", "--threshold and --percentile both say what a fork is"),
        ("--temperatures 0,warm", "--temperatures '0,warm': expected numbers with commas between"),
        ("--temperatures 0,-1", "a temperature of -1.0; it is 0 (greedy) or at least 0.001"),
        ("--percentile 120", "a percentile of 120 is not in [0, 100]"),
        ("--problems 0", "--problems and --samples must be 1 at least"),
        ("--set rollout.engine=a.b:c", "rollout.engine"),
    ],
)
def test_a_fault_is_one_line(here: Here, arguments: str, message: str) -> None:
    code, _, err = here("--run-dir", "D", *arguments.split())
    assert code == USER_ERROR
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert message in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_says_how_to_go_on(
    here: Here, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def interrupted(config: Any, settings: Any, root: Path, stop: Callable[[], bool], note: Any):
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        raise Interrupted("stopped while sampling")

    monkeypatch.setattr(analysis, "measure_temperature", interrupted)
    code, out, _ = here("--run-dir", "D")
    assert code == 128 + number
    assert "stopped while sampling; finished points are kept, the same command goes on" in out


def test_settings_arrive(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def note(config: Any, settings: Any, *_: Any) -> dict[str, Any]:
        seen.append((config, settings))
        raise Interrupted("enough")

    monkeypatch.setattr(analysis, "measure_temperature", note)
    by_hand = "--task chain_sum --threshold 0.672 --problems 7 --samples 3"
    here("--run-dir", "D")
    here("--run-dir", "D", *by_hand.split())
    here("--run-dir", "D", "--percentile", "95", "--temperatures", "0, .5,2")
    (first, default), (second, by_value), (_, by_percentile) = seen
    assert (default.threshold_nats, default.percentile) == (None, 80)
    assert default.temperatures == (0, 0.05, 0.3, 0.6, 1, 2, 3, 5)
    assert by_value.threshold_nats == 0.672
    assert (by_percentile.percentile, by_percentile.temperatures) == (95, (0, 0.5, 2))
    assert (first.task.type, second.task.name) == ("lab", "chain_sum")
    assert (second.evaluation.problems, second.evaluation.samples) == (7, 3)


def test_every_option_is_explained(here: Here) -> None:
    _, out, _ = here("--help")
    lines = [line.strip("│* ") for line in out.splitlines() if re.match(r"│ .*--[a-z]", line)]
    options = {name: text for name, *text in (re.split("  +", line, maxsplit=1) for line in lines)}
    assert {"--threshold FLOAT", "--temperatures STR"} <= options.keys()
    assert [name for name, text in options.items() if not text] == []
