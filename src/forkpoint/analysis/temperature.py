"""Do forks want another temperature than the rest? The paper's Fig. 3, on any model and task.

Two sweeps: forks at each temperature with the rest at 1, and the rest at each with forks at 1
(Eq. 5, ``sampling.tempering``). They share the point (1, 1), which is plain sampling and the
reference of every other point. All points answer the same problems with the same random numbers.

A point with a greedy part still takes every sample: the other part is drawn.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from forkpoint.config import RunConfig
from forkpoint.errors import ConfigError
from forkpoint.evaluation.evaluate import Tally, accuracy, decisive, tally
from forkpoint.evaluation.held_out import numbered_problems, sample_settings
from forkpoint.evaluation.statistics import paired_difference
from forkpoint.runs import RunDirectory
from forkpoint.runs.results import (
    Pattern,
    Temperature,
    TemperaturePoint,
    TemperatureSweep,
    find_result,
    write_result,
)
from forkpoint.runs.resume import Pieces
from forkpoint.sampling import build_sampling, sample_groups
from forkpoint.sampling.base import SplitTemperature
from forkpoint.sampling.build import check_engine
from forkpoint.types import Group

TEMPERATURES = (0.0, 0.05, 0.3, 0.6, 1.0, 2.0, 3.0, 5.0)
"""The paper's; 0 is greedy."""

PERCENTILE = 80.0
"""Of the entropies of all tokens: the paper's threshold."""

Pair: TypeAlias = tuple[float, float]
"""The temperatures of the forks and of the rest."""


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
class Reference:
    """What came out at temperature 1, and which tokens are forks."""

    tally: Tally
    threshold: float
    """Nats."""
    source: Literal["given", "pattern.json", "sampled"]
    share_above: float
    """Of the tokens of these answers."""


def measure_temperature(
    config: RunConfig,
    settings: TemperatureSettings,
    root: Path,
    should_stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda text: None,
) -> Temperature:
    """Write results/temperature.json in ``root`` and return its contents; docs/temperature.md.

    ``rollout.temperature`` is not read: one part always has temperature 1. Started again with the
    same settings it measures only the points that are missing; temperatures may be added.

    Raises:
        ConfigError: a threshold, percentile or temperature that cannot be, or an engine that
            cannot split temperatures.
        Interrupted: ``should_stop()`` turned true; points measured so far stay.
    """
    rollout = config.rollout.model_copy(update={"temperature": 1.0})
    config = config.model_copy(update={"rollout": rollout})
    pairs = _pairs(settings)
    by_value = settings.threshold_nats is not None
    with RunDirectory.claim(root) as directory:
        decides = {
            "threshold_nats": settings.threshold_nats,
            "percentile": None if by_value else settings.percentile,
            "config": decisive(config),
        }
        pieces = Pieces.open(directory.pieces_dir / "temperature", decides)
        with closing(build_sampling(config)) as parts:
            check_engine(parts.engine, config, splits_temperatures=True)
            directory.describe(config.model_dump_json(indent=2))
            numbered = numbered_problems(parts, config)
            prompts = {number: parts.prompter(problem) for number, problem in numbered.items()}
            plain, samples = sample_settings(config, "temperature"), config.evaluation.samples

            def sample(split: SplitTemperature | None) -> tuple[Group, ...]:
                how = replace(plain, split=split)
                return sample_groups(
                    parts, prompts, how, samples=samples, should_stop=should_stop
                ).groups

            reference = pieces.get(
                _key((1.0, 1.0)),
                Reference,
                lambda: _reference(sample(None), config, settings, directory),
            )
            note(
                f"forks: H > {reference.threshold:.3f} nats ({reference.source}), "
                f"{reference.share_above:.1%} of the tokens"
            )
            tallies: dict[Pair, Tally] = {(1.0, 1.0): reference.tally}
            nats = reference.threshold
            for forks, rest in pairs:
                split = SplitTemperature(threshold_nats=nats, above=forks, below=rest)
                found = pieces.get(
                    _key((forks, rest)), Tally, lambda split=split: _judged(sample(split))
                )
                tallies[forks, rest] = found
                note(f"forks at {forks:g}, rest at {rest:g}: {np.mean(found.right_P):.1%} right")
        result = Temperature(
            model=config.model.path,
            task=config.task_name,
            entropy_threshold=reference.threshold,
            threshold_percentile=decides["percentile"],
            threshold_source=reference.source,
            share_above=reference.share_above,
            problems=len(reference.tally.right_P),
            samples=config.evaluation.samples,
            max_new_tokens=config.rollout.max_new_tokens,
            seed=config.evaluation.seed,
            sweeps=_sweeps(tallies, config.evaluation.seed),
        )
        write_result(root, result)
    return result


def _pairs(settings: TemperatureSettings) -> list[Pair]:
    """Those of every point but the reference; a fault is found before any is sampled."""
    if not 0 <= settings.percentile <= 100:
        raise ConfigError(f"a percentile of {settings.percentile:g} is not in [0, 100]")
    others = sorted({float(t) for t in settings.temperatures} - {1.0})
    pairs = [*((t, 1.0) for t in others), *((1.0, t) for t in others)]
    for forks, rest in [(1.0, 1.0), *pairs]:
        SplitTemperature(threshold_nats=settings.threshold_nats or 0.0, above=forks, below=rest)
    return pairs


def _key(pair: Pair) -> str:
    return "forks_{}_rest_{}.json".format(*pair)  # every digit: two are never one


def _judged(groups: Sequence[Group]) -> Tally:
    """The tally of a point; one that no verifier could judge is refused before it is stored."""
    found = tally(groups)
    accuracy(found, seed=0)
    return found


def _reference(
    groups: Sequence[Group],
    config: RunConfig,
    settings: TemperatureSettings,
    directory: RunDirectory,
) -> Reference:
    """What was sampled at temperature 1, which needs no threshold and may be what it is from."""
    entropies = [r.completion.entropies for group in groups for r in group.rollouts_G]
    entropies_T = np.concatenate([e for e in entropies if e is not None])
    source, nats = "given", settings.threshold_nats
    if nats is None:
        source, nats = "pattern.json", _analysed(config, settings.percentile, directory)
    if nats is None:
        source, nats = "sampled", float(np.percentile(entropies_T, settings.percentile))
    return Reference(
        tally=_judged(groups),
        threshold=nats,
        source=source,
        share_above=float(np.mean(entropies_T > nats)),
    )


def _analysed(config: RunConfig, percentile: float, directory: RunDirectory) -> float | None:
    """The percentile that ``forkpoint analyze`` found here, if on this model's own answers to this
    task at temperature 1 and this length."""
    pattern = find_result(directory.root, Pattern)
    if pattern is None or pattern.source != "sampled" or pattern.temperature != 1:
        return None
    theirs = Pieces(directory.completions_dir("analysis")).settings().get("config", {})
    ours = config.model_dump(mode="json")
    lengths = [found.get("rollout", {}).get("max_new_tokens") for found in (theirs, ours)]
    if lengths[0] != lengths[1] or any(theirs.get(x) != ours[x] for x in ("model", "task")):
        return None
    return {float(p): nats for p, nats in pattern.percentiles.items()}.get(percentile)


# ---- temperature.json ---------------------------------------------------------------------------


def _sweeps(tallies: dict[Pair, Tally], seed: int) -> tuple[TemperatureSweep, ...]:
    """Both sweeps by ascending temperature, the reference in each."""
    reference = tallies[1.0, 1.0]

    def point(temperature: float, found: Tally) -> TemperaturePoint:
        return TemperaturePoint(
            temperature=temperature,
            accuracy=accuracy(found, seed=seed),
            difference=(
                None
                if found is reference
                else paired_difference(found.right_P, reference.right_P, seed=seed)
            ),
            length_mean=found.length_mean,
            truncated_fraction=found.truncated_fraction,
        )

    forks = sorted((forks, found) for (forks, rest), found in tallies.items() if rest == 1)
    rest = sorted((rest, found) for (forks, rest), found in tallies.items() if forks == 1)
    return (
        TemperatureSweep(varied="forks", points=tuple(point(*one) for one in forks)),
        TemperatureSweep(varied="rest", points=tuple(point(*one) for one in rest)),
    )
