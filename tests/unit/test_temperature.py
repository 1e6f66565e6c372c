"""The temperature sweeps: which points are sampled, what is said of them, what a stop leaves."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.analysis import temperature as module
from forkpoint.analysis.temperature import (
    TEMPERATURES,
    TemperatureSettings,
    measure_temperature,
    paired_difference,
)
from forkpoint.config import RunConfig, parse_config
from forkpoint.errors import ConfigError, Interrupted, RunError
from forkpoint.evaluation.statistics import bootstrap_interval, wilson_interval
from forkpoint.ranks import ALONE
from forkpoint.runs.atomic import write_json
from forkpoint.runs.results import (
    Estimate,
    Histogram,
    Pattern,
    Temperature,
    TemperaturePoint,
    read_result,
    result_path,
    write_result,
)
from forkpoint.sampling import SampleRequest
from forkpoint.sampling.base import SamplingSettings, SplitTemperature
from forkpoint.types import Completion, FinishReason, Problem, Prompt, Score

PATTERN = Pattern(
    model="lab:game",
    source="sampled",
    task="lab:game",
    temperature=1.0,
    seed=20_000,
    tokens=4,
    completions=1,
    prompts=1,
    keep_fraction=0.2,
    mean_entropy=0.1,
    share_below_0_01=0.5,
    entropy_threshold=0.3,
    kept_fraction=0.25,
    entropy_share_of_top=0.9,
    percentiles={0: 0.0, 80: 0.123, 95: 0.3},
    histogram=Histogram(edges=(0.0, 1.0), counts=(4,)),
    by_position=(),
    by_length=(),
    by_correctness=(),
    accuracy=None,
    words_min_count=100,
    words_listed=0,
    lab=None,
)
PROBLEMS, SAMPLES = 4, 2
FEW = TemperatureSettings(temperatures=(0.0, 2.0))
"""Five points: (1, 1), forks at 0 and 2, the rest at 0 and 2."""


class FakeEngine:
    """Problem n is answered right while both temperatures are at most n / 2, by 3 + n tokens, the
    last sample truncated when the rest is at 2."""

    captures_entropy = True
    splits_temperatures = True

    def __init__(self) -> None:
        self.calls: list[SamplingSettings] = []

    def sample(
        self,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        should_stop: Callable[[], bool],
    ) -> list[Completion]:
        if should_stop():
            raise Interrupted("stopped while sampling")
        self.calls.append(settings)
        split = settings.split or SplitTemperature(threshold_nats=0.0, above=1.0, below=1.0)
        return [self._completion(request, split) for request in requests]

    def _completion(self, request: SampleRequest, split: SplitTemperature) -> Completion:
        number, length = request.serial, 3 + request.serial
        right = max(split.above, split.below) <= number / 2
        truncated = split.below == 2 and request.sample == SAMPLES - 1
        return Completion(
            token_ids=np.full(length, 5),
            logprobs=np.full(length, -1.0),
            entropies=np.array([0.1 * (number + place) for place in range(length)]),
            finish_reason=FinishReason.LENGTH if truncated else FinishReason.STOP,
            text="right" if right else "wrong",
        )

    def close(self) -> None:
        """Nothing is held."""


class FakeScorer:
    def score(self, pairs: Sequence[tuple[Problem, Completion]], *_: Any) -> list[Score]:
        marks = [float(completion.text == "right") for _, completion in pairs]
        return [Score(reward=mark, verdict=mark, parts={"task": mark}) for mark in marks]


class FakeTask:
    def held_out(self, count: int, seed: int) -> list[Problem]:
        return [Problem(id=f"p{n}", prompt="") for n in range(count)]


class FakeParts:
    ranks = ALONE

    def __init__(self, engine: Any) -> None:
        self.engine, self.scorer, self.task = engine, FakeScorer(), FakeTask()

    def prompter(self, problem: Problem) -> Prompt:
        return Prompt(problem=problem, token_ids=(1,))

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    engine = FakeEngine()
    monkeypatch.setattr(module, "build_sampling", lambda config: FakeParts(engine))
    return engine


def config_of(**changes: Any) -> RunConfig:
    evaluation = {"problems": PROBLEMS, "samples": SAMPLES}
    return parse_config({"evaluation": evaluation, **changes})


def stored(root: Path) -> Temperature:
    return read_result(result_path(root, Temperature), Temperature)


def points_of(found: Temperature, varied: str) -> dict[float, TemperaturePoint]:
    (sweep,) = (sweep for sweep in found.sweeps if sweep.varied == varied)
    return {point.temperature: point for point in sweep.points}


# ---- which points -------------------------------------------------------------------------------


def pairs_of(engine: FakeEngine) -> list[tuple[float, float]]:
    return [(c.split.above, c.split.below) for c in engine.calls if c.split is not None]


def test_two_sweeps_share_one_point(engine: FakeEngine, tmp_path: Path) -> None:
    measure_temperature(config_of(), FEW, tmp_path)
    assert engine.calls[0].split is None  # both at 1: plain sampling, and once
    assert pairs_of(engine) == [(0.0, 1.0), (2.0, 1.0), (1.0, 0.0), (1.0, 2.0)]
    # the same random numbers everywhere, at temperature 1 where the entropy is asked
    names = {(c.temperature, c.seed, c.step, c.purpose) for c in engine.calls}
    assert names == {(1.0, 20_000, 0, "temperature")}


def test_the_papers_grid_is_the_default(engine: FakeEngine, tmp_path: Path) -> None:
    summary = measure_temperature(config_of(), TemperatureSettings(), tmp_path)
    assert TEMPERATURES == (0, 0.05, 0.3, 0.6, 1, 2, 3, 5)
    assert len(engine.calls) == 15  # 8 + 8 - 1
    for varied in ("forks", "rest"):
        assert tuple(points_of(summary, varied)) == TEMPERATURES


def test_the_recipes_temperature_is_not_read(engine: FakeEngine, tmp_path: Path) -> None:
    measure_temperature(config_of(rollout={"temperature": 0.6}), FEW, tmp_path)
    assert {c.temperature for c in engine.calls} == {1.0}


# ---- the threshold ------------------------------------------------------------------------------

# problem n has n + 3 tokens of 0.1 (n + 0), 0.1 (n + 1), ..: 36 of both samples together
entropies_T = np.array(
    [0.1 * (n + place) for n in range(4) for place in range(3 + n)] * SAMPLES, dtype=np.float32
)


@pytest.mark.parametrize("percentile", [0.0, 50.0, 80.0, 97.5])
def test_a_percentile_of_what_is_sampled_at_temperature_1(
    engine: FakeEngine, tmp_path: Path, percentile: float
) -> None:
    settings = TemperatureSettings(temperatures=(2.0,), percentile=percentile)
    summary = measure_temperature(config_of(), settings, tmp_path)
    threshold = float(np.percentile(entropies_T, percentile))
    assert summary.entropy_threshold == threshold
    assert summary.share_above == (entropies_T > threshold).sum() / 36
    assert (summary.threshold_percentile, summary.threshold_source) == (percentile, "sampled")
    assert {c.split.threshold_nats for c in engine.calls if c.split} == {threshold}


def test_a_threshold_that_is_given(engine: FakeEngine, tmp_path: Path) -> None:
    settings = TemperatureSettings(temperatures=(2.0,), threshold_nats=0.55)
    summary = measure_temperature(config_of(), settings, tmp_path)
    assert (summary.entropy_threshold, summary.threshold_percentile) == (0.55, None)
    assert summary.threshold_source == "given"
    # 0.6 to 0.8 in problem 3, 0.6 in problem 2, of 18 tokens: 0.2 .. 0.6 and 0.3 .. 0.8
    assert summary.share_above == pytest.approx(4 / 18)
    assert {c.split.threshold_nats for c in engine.calls if c.split} == {0.55}


def analysed(root: Path, **changes: Any) -> None:
    """What ``forkpoint analyze`` leaves, of the same model and task; 80 %: 0.123 nats."""
    sections = config_of().model_dump(mode="json")
    for name, change in changes.items():
        if name in sections:
            sections[name] |= change
    source = changes.get("source", "sampled")
    described = {"source": source, "config": sections}
    write_json(root / "completions" / "analysis" / "settings.json", described)
    pattern = PATTERN.model_copy(
        update={"source": source, "temperature": sections["rollout"]["temperature"]}
    )
    write_result(root, pattern)


def test_an_analysis_of_the_same_model_has_the_threshold(
    engine: FakeEngine, tmp_path: Path
) -> None:
    analysed(tmp_path)
    summary = measure_temperature(config_of(), FEW, tmp_path)
    assert (summary.entropy_threshold, summary.threshold_source) == (0.123, "pattern.json")
    assert summary.share_above == (entropies_T > 0.123).sum() / 36


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"path": "another"}},
        {"task": {"seed": 1}},
        {"rollout": {"temperature": 0.6}},
        {"rollout": {"max_new_tokens": 7}},
        {"source": "somebody's.jsonl"},
        {"percentile": 42.0},  # not among those of the summary
    ],
)
def test_an_analysis_of_something_else_has_not(
    engine: FakeEngine, tmp_path: Path, changes: dict[str, Any]
) -> None:
    percentile = changes.get("percentile", 80.0)
    analysed(tmp_path, **changes)
    settings = TemperatureSettings(temperatures=(2.0,), percentile=percentile)
    summary = measure_temperature(config_of(), settings, tmp_path)
    assert summary.threshold_source == "sampled"
    assert summary.entropy_threshold == float(np.percentile(entropies_T, percentile))


# ---- what is said of a point --------------------------------------------------------------------


def test_a_point_by_hand(engine: FakeEngine, tmp_path: Path) -> None:
    summary = measure_temperature(config_of(), FEW, tmp_path)
    assert summary == stored(tmp_path)
    assert (summary.problems, summary.samples) == (PROBLEMS, SAMPLES)
    assert (summary.model, summary.task) == ("lab:game", "lab:game")
    forks, rest = points_of(summary, "forks"), points_of(summary, "rest")
    # problems 0 .. 3 are right up to temperature 0, 1/2, 1, 3/2: two at (1, 1), none at (2, 1)
    assert [p.accuracy.value for p in forks.values()] == [0.5, 0.5, 0.0]
    low, high = bootstrap_interval([0.0, 0.0, 1.0, 1.0], seed=20_000)
    assert forks[0.0].accuracy == Estimate(value=0.5, low=low, high=high, n=4)
    assert {p.length_mean for p in forks.values()} == {4.5}  # (3 + 4 + 5 + 6) / 4
    assert [p.truncated_fraction for p in forks.values()] == [0.0, 0.0, 0.0]
    assert [p.truncated_fraction for p in rest.values()] == [0.0, 0.0, 0.5]
    assert forks[1.0] == rest[1.0]


def test_differences_are_to_plain_sampling(engine: FakeEngine, tmp_path: Path) -> None:
    summary = measure_temperature(config_of(), FEW, tmp_path)
    plain, hot = [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]
    forks = points_of(summary, "forks")
    assert forks[1.0].difference is None
    assert forks[2.0].difference == paired_difference(hot, plain, seed=20_000)
    differences = [point.difference for point in forks.values() if point.difference]
    assert [d.value for d in differences] == [0.0, -0.5]


def test_a_difference_of_pairs_by_hand() -> None:
    # differences 1/2, 0, -1, 1/2: as shares (d + 1) / 2 they are 3/4, 1/2, 0, 3/4
    low, high = bootstrap_interval([0.75, 0.5, 0.0, 0.75], seed=3)
    found = paired_difference([1.0, 0.5, 0.0, 0.5], [0.5, 0.5, 1.0, 0.0], seed=3)
    assert (found.value, found.n) == (0.0, 4)
    assert found.interval == pytest.approx((2 * low - 1, 2 * high - 1))


@pytest.mark.parametrize("common", [0.0, 1.0, -1.0, 0.25])
def test_differences_that_are_all_equal_still_have_an_interval(common: float) -> None:
    # u = z^2 / (n + z^2), the upper end of Wilson's interval of 0 in 4: 3.8415 / 7.8415
    u = 1.959964**2 / (4 + 1.959964**2)
    assert u == pytest.approx(wilson_interval(0, 4)[1])
    found = paired_difference([max(common, 0.0)] * 4, [max(-common, 0.0)] * 4, seed=0)
    assert found.value == common
    # a share u of the problems at -1 or at 1, all others at the common value
    assert found.low == pytest.approx((1 - u) * common - u)
    assert found.high == pytest.approx((1 - u) * common + u)


@given(
    pairs=st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])),
        min_size=1,
        max_size=30,
    )
)
def test_a_difference_is_within_its_interval(pairs: list[tuple[float, float]]) -> None:
    ours, reference = [a for a, _ in pairs], [b for _, b in pairs]
    found = paired_difference(ours, reference, seed=1)
    assert found.value == pytest.approx(np.mean(ours) - np.mean(reference))
    assert found.interval is not None
    low, high = found.interval
    assert -1 - 1e-12 <= low <= found.value + 1e-12
    assert found.value - 1e-12 <= high <= 1 + 1e-12


# ---- stopping and going on ----------------------------------------------------------------------


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_a_stop_keeps_the_points_that_are_finished(
    engine: FakeEngine, tmp_path: Path, finished: int
) -> None:
    def stop() -> bool:
        return len(engine.calls) == finished

    with pytest.raises(Interrupted):
        measure_temperature(config_of(), FEW, tmp_path / "stopped", stop)
    assert not result_path(tmp_path / "stopped", Temperature).exists()
    resumed = measure_temperature(config_of(), FEW, tmp_path / "stopped")
    assert len(engine.calls) == 5  # none was sampled twice
    assert resumed == measure_temperature(config_of(), FEW, tmp_path / "whole")
    assert stored(tmp_path / "stopped") == stored(tmp_path / "whole")


def test_a_finished_sweep_is_read_and_not_sampled_again(engine: FakeEngine, tmp_path: Path) -> None:
    first = measure_temperature(config_of(), FEW, tmp_path)
    engine.calls.clear()
    assert measure_temperature(config_of(), FEW, tmp_path) == first
    assert engine.calls == []


def test_temperatures_may_be_added(engine: FakeEngine, tmp_path: Path) -> None:
    measure_temperature(config_of(), FEW, tmp_path)
    engine.calls.clear()
    more = TemperatureSettings(temperatures=(0.0, 0.1234567, 0.1234568))
    summary = measure_temperature(config_of(), more, tmp_path)
    assert pairs_of(engine) == [
        *((t, 1.0) for t in (0.1234567, 0.1234568)),
        *((1.0, t) for t in (0.1234567, 0.1234568)),
    ]
    assert list(points_of(summary, "rest")) == [0.0, 0.1234567, 0.1234568, 1.0]


@pytest.mark.parametrize(
    ("config", "settings", "named"),
    [
        ({"rollout": {"max_new_tokens": 9}}, {}, r"config\.rollout\.max_new_tokens: 160 -> 9"),
        ({"model": {"path": "x"}}, {}, r"config\.model\.path: 'lab:game' -> 'x'"),
        ({}, {"percentile": 90.0}, r"percentile: 80\.0 -> 90\.0"),
        ({}, {"threshold_nats": 0.3}, r"threshold_nats: None -> 0\.3"),
    ],
)
def test_other_settings_are_refused(
    engine: FakeEngine,
    tmp_path: Path,
    config: dict[str, Any],
    settings: dict[str, Any],
    named: str,
) -> None:
    measure_temperature(config_of(), FEW, tmp_path)
    before = stored(tmp_path)
    with pytest.raises(RunError, match=named):
        measure_temperature(
            config_of(**config), TemperatureSettings(temperatures=(3.0,), **settings), tmp_path
        )
    assert stored(tmp_path) == before


def test_what_cannot_be_read_is_named(engine: FakeEngine, tmp_path: Path) -> None:
    measure_temperature(config_of(), FEW, tmp_path)
    path = tmp_path / "pieces" / "temperature" / "forks_2.0_rest_1.0.json"
    path.write_text("{")
    with pytest.raises(RunError, match=r"forks_2\.0_rest_1\.0\.json cannot be read"):
        measure_temperature(config_of(), FEW, tmp_path)


# ---- what cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize("without", ["splits_temperatures", "captures_entropy"])
def test_an_engine_that_cannot_is_refused_by_name(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    monkeypatch.setattr(engine, without, False)
    config = config_of(rollout={"engine": "my.module:factory"})
    with pytest.raises(ConfigError, match=r"rollout\.engine = 'my\.module:factory' cannot decode"):
        measure_temperature(config, FEW, tmp_path)
    assert engine.calls == []
    # and that start is forgotten
    monkeypatch.setattr(engine, without, True)
    measure_temperature(config_of(), FEW, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rollout"]["engine"] == "transformers"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperatures": (0.5, -1.0)}, r"a temperature of -1\.0"),
        ({"temperatures": (float("nan"),)}, "a temperature of nan"),
        ({"threshold_nats": -0.5}, r"a threshold of -0\.5 nats"),
        ({"percentile": 101.0}, r"a percentile of 101 is not in \[0, 100\]"),
        ({"percentile": float("nan")}, "a percentile of nan"),
    ],
)
def test_settings_that_cannot_be_are_found_before_anything_is_written(
    engine: FakeEngine, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        measure_temperature(config_of(), TemperatureSettings(**settings), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert engine.calls == []
