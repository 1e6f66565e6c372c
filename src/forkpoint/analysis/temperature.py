"""Do forks want another temperature than the rest? The paper's Fig. 3, on any model and task.

Two sweeps: forks at each temperature with the rest at 1, and the rest at each with forks at 1
(Eq. 5, ``rollouts.tempering``). They share the point (1, 1), which is plain sampling and the
reference of every other point. All points answer the same problems with the same random numbers.

A point with a greedy part still takes every sample: the other part is drawn.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from forkpoint.analysis.held_out import numbered_problems, sample_settings
from forkpoint.analysis.run_files import write_run_files
from forkpoint.config import RunConfig
from forkpoint.errors import ConfigError, RunError
from forkpoint.evaluation.evaluate import accuracy, is_right
from forkpoint.evaluation.statistics import bootstrap_interval, wilson_interval
from forkpoint.runs import RunDirectory
from forkpoint.runs.atomic import write_json
from forkpoint.runs.directory import check_settings
from forkpoint.sampling import SampleRequest, SamplingParts, build_sampling
from forkpoint.sampling.base import SplitTemperature
from forkpoint.sampling.build import check_engine
from forkpoint.types import Completion, FinishReason, Group, Rollout

SCHEMA = 1

THRESHOLD = "threshold.json"
"""Written when the first point is there."""

TEMPERATURES = (0.0, 0.05, 0.3, 0.6, 1.0, 2.0, 3.0, 5.0)
"""The paper's; 0 is greedy."""

PERCENTILE = 80.0
"""Of the entropies of all tokens: the paper's threshold."""

DECIDES = ("model", "task", "rewards", "rollout", "evaluation")
"""Sections of a configuration that a point's numbers depend on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemperatureSettings:
    """What ``measure_temperature`` needs besides a run's configuration."""

    threshold_nats: float | None = None
    """A token whose position has more entropy is a fork; None: by ``percentile``."""
    percentile: float = PERCENTILE
    """Of the entropies that are sampled at temperature 1."""
    temperatures: tuple[float, ...] = TEMPERATURES
    """Of the part that is varied; 1 is always among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What came out at one pair of temperatures; a file of its own."""

    forks: float
    """The temperature of the forks."""
    rest: float
    accuracy: dict[str, Any]
    """value, low, high and n, over problems."""
    right_P: list[float]
    """Share of right samples of each problem."""
    length_mean: float
    """Tokens per completion."""
    truncated_fraction: float
    """Of the completions: cut by the token budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Which tokens are forks."""

    nats: float
    source: str
    """``given``, ``summary.json``, or ``sampled``: measured on the answers at temperature 1."""
    share_above: float
    """Of the tokens of the answers at temperature 1."""


def measure_temperature(
    config: RunConfig,
    settings: TemperatureSettings,
    root: Path,
    should_stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write analysis/temperature.json in ``root`` and return its contents; docs/temperature.md.

    ``rollout.temperature`` is not read: one part always has temperature 1. Started again with the
    same settings it measures only the points that are missing; temperatures may be added.

    Raises:
        ConfigError: a threshold, percentile or temperature that cannot be, or an engine that
            cannot split temperatures.
        Interrupted: ``should_stop()`` turned true; points measured so far stay.
    """
    config = _at_temperature_1(config)
    grid = _grid(settings)
    with RunDirectory.claim(root) as directory:
        folder = directory.analysis_dir / "temperature"
        started = (folder / THRESHOLD).exists()
        if started:
            check_settings(folder / "config.json", _described(config, settings))
        with closing(build_sampling(config)) as parts:
            check_engine(parts.engine, config, splits_temperatures=True)
            write_run_files(directory, config)
            if not started:  # a start that failed may have left others
                write_json(folder / "config.json", _described(config, settings))
            sweep = _Sweep(parts, config, folder, should_stop, note)
            threshold = sweep.reference(settings, directory.analysis_dir)
            points = [sweep.point(forks, rest, threshold) for forks, rest in grid]
        summary = {
            **_head(config, settings, threshold),
            "problems": len(points[0].right_P),
            "sweeps": _sweeps(points, config),
        }
        write_json(directory.analysis_dir / "temperature.json", summary)
    return summary


def _at_temperature_1(config: RunConfig) -> RunConfig:
    rollout = config.rollout.model_copy(update={"temperature": 1.0})
    return config.model_copy(update={"rollout": rollout})


def _grid(settings: TemperatureSettings) -> list[tuple[float, float]]:
    """(forks, rest) of every point, the reference first; a fault is found before any is sampled."""
    if not 0 <= settings.percentile <= 100:
        raise ConfigError(f"a percentile of {settings.percentile:g} is not in [0, 100]")
    others = sorted({float(t) for t in settings.temperatures} - {1.0})
    grid = [(1.0, 1.0), *((t, 1.0) for t in others), *((1.0, t) for t in others)]
    for forks, rest in grid:
        SplitTemperature(threshold_nats=settings.threshold_nats or 0.0, above=forks, below=rest)
    return grid


def _described(config: RunConfig, settings: TemperatureSettings) -> dict[str, Any]:
    """analysis/temperature/config.json: everything that decides a point."""
    sections = config.model_dump(mode="json", include=set(DECIDES))
    by_value = settings.threshold_nats is not None
    return {
        "schema": SCHEMA,
        "threshold_nats": settings.threshold_nats,
        "percentile": None if by_value else settings.percentile,
        "config": sections,
    }


# ---- sampling -----------------------------------------------------------------------------------


class _Sweep:
    """Measures points, or reads those that were."""

    def __init__(
        self,
        parts: SamplingParts,
        config: RunConfig,
        folder: Path,
        should_stop: Callable[[], bool],
        note: Callable[[str], None],
    ) -> None:
        self._parts, self._config, self._folder = parts, config, folder
        self._should_stop, self._note = should_stop, note
        problems = numbered_problems(parts, config)
        self._prompts = {number: parts.prompter(p) for number, p in problems.items()}

    def reference(self, settings: TemperatureSettings, analysis_dir: Path) -> Threshold:
        """Sample at temperature 1, which needs no threshold and may be what it is measured on."""
        path = self._folder / THRESHOLD
        if not path.exists():
            completions = self._sample(None)
            entropies_T = np.concatenate([_entropies(c) for c in completions])
            threshold = _threshold(entropies_T, settings, self._config, analysis_dir)
            self._write(1.0, 1.0, completions)
            write_json(path, asdict(threshold))
        threshold = Threshold(**_read(path))
        self._note(
            f"forks: H > {threshold.nats:.3f} nats ({threshold.source}), "
            f"{threshold.share_above:.1%} of the tokens"
        )
        return threshold

    def point(self, forks: float, rest: float, threshold: Threshold) -> Point:
        """What comes out at these temperatures."""
        path = self._path(forks, rest)
        if not path.exists():
            split = SplitTemperature(threshold_nats=threshold.nats, above=forks, below=rest)
            self._write(forks, rest, self._sample(split))
        point = Point(**_read(path))
        self._note(f"forks at {forks:g}, rest at {rest:g}: {point.accuracy['value']:.1%} right")
        return point

    def _path(self, forks: float, rest: float) -> Path:
        return self._folder / f"forks_{forks}_rest_{rest}.json"  # every digit: two are never one

    def _sample(self, split: SplitTemperature | None) -> list[Completion]:
        requests = [
            SampleRequest(prompt=prompt, serial=number, sample=sample)
            for number, prompt in self._prompts.items()
            for sample in range(self._config.evaluation.samples)
        ]
        settings = replace(sample_settings(self._config, "temperature"), split=split)
        return self._parts.engine.sample(requests, settings, self._should_stop)

    def _write(self, forks: float, rest: float, completions: Sequence[Completion]) -> None:
        groups = tuple(self._groups(completions))
        truncated = [c.finish_reason is FinishReason.LENGTH for c in completions]
        point = Point(
            forks=forks,
            rest=rest,
            accuracy=accuracy(groups, seed=self._config.evaluation.seed).model_dump(),
            right_P=[float(np.mean([is_right(r) for r in g.rollouts_G])) for g in groups],
            length_mean=float(np.mean([len(c.token_ids) for c in completions])),
            truncated_fraction=float(np.mean(truncated)),
        )
        write_json(self._path(forks, rest), asdict(point))

    def _groups(self, completions: Sequence[Completion]) -> Iterator[Group]:
        samples = self._config.evaluation.samples
        prompts = [prompt for prompt in self._prompts.values() for _ in range(samples)]
        pairs = [(p.problem, c) for p, c in zip(prompts, completions, strict=True)]
        scores = self._parts.scorer.score(pairs, self._should_stop)
        rollouts = [
            Rollout(completion=c, score=s) for c, s in zip(completions, scores, strict=True)
        ]
        for line, (number, prompt) in enumerate(self._prompts.items()):
            mine = rollouts[line * samples : (line + 1) * samples]
            yield Group(prompt=prompt, serial=number, rollouts_G=tuple(mine))


def _entropies(completion: Completion) -> np.ndarray:
    return np.array(completion.entropies, dtype=np.float32)


def _threshold(
    entropies_T: np.ndarray, settings: TemperatureSettings, config: RunConfig, analysis_dir: Path
) -> Threshold:
    source, nats = "given", settings.threshold_nats
    if nats is None:
        source, nats = "summary.json", _analysed(config, settings.percentile, analysis_dir)
    if nats is None:
        source, nats = "sampled", float(np.percentile(entropies_T, settings.percentile))
    return Threshold(nats=nats, source=source, share_above=float(np.mean(entropies_T > nats)))


def _analysed(config: RunConfig, percentile: float, analysis_dir: Path) -> float | None:
    """The percentile that ``forkpoint analyze`` found here, if on this model's own answers to this
    task at temperature 1 and this length."""
    paths = [analysis_dir / name for name in ("config.json", "summary.json")]
    if not all(path.exists() for path in paths):
        return None
    described, summary = map(_read, paths)
    sections = config.model_dump(mode="json")
    same = described["source"] == "sampled" and all(
        described["config"][section] == sections[section] for section in ("model", "task")
    )
    limits = [c["rollout"] for c in (described["config"], sections)]
    if not same or any(limits[0][k] != limits[1][k] for k in ("temperature", "max_new_tokens")):
        return None
    return summary["percentiles"].get(f"{percentile:g}")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}; delete it to measure it again") from error


# ---- temperature.json ---------------------------------------------------------------------------


def paired_difference(
    right_P: Sequence[float], reference_P: Sequence[float], *, seed: int
) -> dict[str, float]:
    """Mean over problems of the difference of their shares, with a 95 % interval.

    A bootstrap over problems. Where all P differences are the same number c, it has no width: then
    a share of up to u of all problems may differ from c, in [-1, 1], with u the upper end of
    Wilson's interval of 0 in P.
    """
    differences = [a - b for a, b in zip(right_P, reference_P, strict=True)]
    value = float(np.mean(differences))
    if min(differences) == max(differences):
        _, u = wilson_interval(0, len(differences))
        return {"value": value, "low": value - u * (value + 1), "high": value + u * (1 - value)}
    low, high = bootstrap_interval([(d + 1) / 2 for d in differences], seed=seed)
    return {"value": value, "low": 2 * low - 1, "high": 2 * high - 1}


def _head(config: RunConfig, settings: TemperatureSettings, threshold: Threshold) -> dict[str, Any]:
    task = config.task.model_dump()
    return {
        "schema": SCHEMA,
        "model": config.model.path,
        "task": task.get("name") or task.get("path") or task["type"],
        "threshold_nats": threshold.nats,
        "threshold_percentile": (
            None if settings.threshold_nats is not None else settings.percentile
        ),
        "threshold_source": threshold.source,
        "share_above": threshold.share_above,
        "samples": config.evaluation.samples,
        "max_new_tokens": config.rollout.max_new_tokens,
        "seed": config.evaluation.seed,
    }


def _sweeps(points: Sequence[Point], config: RunConfig) -> list[dict[str, Any]]:
    """Both sweeps by ascending temperature, the reference in each."""
    reference, seed = points[0], config.evaluation.seed
    forks = sorted((p for p in points if p.rest == 1), key=lambda p: p.forks)
    rest = sorted((p for p in points if p.forks == 1), key=lambda p: p.rest)
    return [
        {
            "varied": varied,
            "fixed": 1.0,
            "points": [_entry(p, getattr(p, varied), reference, seed) for p in swept],
        }
        for varied, swept in (("forks", forks), ("rest", rest))
    ]


def _entry(point: Point, temperature: float, reference: Point, seed: int) -> dict[str, Any]:
    return {
        "temperature": temperature,
        "accuracy": point.accuracy,
        "difference": (
            None
            if point == reference
            else paired_difference(point.right_P, reference.right_P, seed=seed)
        ),
        "length_mean": point.length_mean,
        "truncated_fraction": point.truncated_fraction,
    }
