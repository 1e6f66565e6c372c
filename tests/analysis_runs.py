"""Small results made by hand, for the tests of the report and of figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from forkpoint.analysis import words as words_module
from forkpoint.analysis.words import Word
from forkpoint.runs import RunDirectory
from forkpoint.runs.atomic import write_json
from forkpoint.runs.results import (
    Branching,
    CheckpointEntropy,
    CorrectnessGroup,
    Dynamics,
    EntropyBin,
    EntropyChange,
    Estimate,
    ForkTruth,
    GapGroup,
    Histogram,
    Pattern,
    Replacement,
    Result,
    Temperature,
    TemperaturePoint,
    TemperatureSweep,
    write_result,
)
from tests.stored import make_completion, make_store


def interval(value: float, half: float = 0.0, n: int = 16) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, n=n)


PATTERN = Pattern(
    model="lab:game",
    source="sampled",
    task="lab:game",
    temperature=1.0,
    seed=17,
    tokens=1200,
    completions=24,
    prompts=6,
    keep_fraction=0.2,
    mean_entropy=0.25,
    share_below_0_01=0.625,
    entropy_threshold=0.5,
    kept_fraction=0.2025,
    entropy_share_of_top=0.875,
    percentiles={q: (q / 100) ** 3 for q in range(0, 101, 5)},
    histogram=Histogram(edges=(0.0, 0.25, 0.5, 0.75, 1.0), counts=(900, 150, 100, 50)),
    by_position=(
        EntropyBin(first=0, last=31, count=768, mean_entropy=0.375),
        EntropyBin(first=32, last=63, count=432, mean_entropy=0.125),
    ),
    by_correctness=(
        CorrectnessGroup(
            label="correct",
            completions=9,
            tokens=400,
            mean_entropy=Estimate(value=0.2, low=0.15, high=0.26, n=6),
        ),
        CorrectnessGroup(
            label="wrong",
            completions=15,
            tokens=800,
            mean_entropy=Estimate(value=0.275, low=0.25, high=0.3, n=6),
        ),
    ),
    by_length=(EntropyBin(first=40, last=60, count=24, mean_entropy=0.25),),
    accuracy=Estimate(value=0.375, low=0.2, high=0.55, n=6),
    words_min_count=100,
    words_listed=4,
    lab=None,
)

LAB_TRUTH = ForkTruth(
    tokens=1000,
    precision=0.9,
    recall=0.8,
    average_precision=0.95,
    fork_share=0.225,
    entropy_error=0.0125,
    fork_entropy_true=0.75,
    fork_entropy_measured=0.7,
    forced_entropy_measured=0.02,
)


def checkpoint(index: int, base: Estimate, final: Estimate) -> CheckpointEntropy:
    divisor = (100, 90, 80)[index]
    return CheckpointEntropy(
        name=("base", "step_00010", "step_00020")[index],
        step=10 * index,
        path="lab:game",
        overlap_with_base=base,
        overlap_with_final=final,
        mean_entropy=interval(0.25, 0.01),
        percentiles={
            q: Estimate(value=q / divisor, low=None, high=None, n=16)
            for q in (0, 20, 40, 60, 80, 90, 95, 99, 100)
        },
    )


DYNAMICS = Dynamics(
    source="sampled",
    task="lab:game",
    temperature=1.0,
    seed=17,
    keep_fraction=0.2,
    tokens=5000,
    completions=64,
    prompts=16,
    checkpoints=(
        checkpoint(0, interval(1.0), interval(0.875, 0.025)),
        checkpoint(1, interval(0.9375, 0.0125), interval(0.95, 0.01)),
        checkpoint(2, interval(0.875, 0.025), interval(1.0)),
    ),
    change_by_bin=tuple(
        EntropyChange(
            from_percentile=5 * i,
            to_percentile=5 * i + 5,
            lowest_base_entropy=i / 20,
            highest_base_entropy=(i + 1) / 20,
            tokens=250,
            change=Estimate(
                value=10.0 ** (i / 5 - 5) * (-1 if i == 3 else 1), low=-1e-3, high=0.1, n=16
            ),
        )
        for i in range(20)
    ),
)


def point(temperature: float, accuracy: float) -> TemperaturePoint:
    return TemperaturePoint(
        temperature=temperature,
        accuracy=interval(accuracy, 0.05, 100),
        length_mean=64.0,
        truncated_fraction=0.125,
        difference=interval(accuracy - 0.5, 0.03125, 100),
    )


TEMPERATURE = Temperature(
    model="lab:game",
    task="lab:game",
    entropy_threshold=0.5,
    threshold_percentile=80,
    threshold_source="sampled",
    share_above=0.2,
    problems=100,
    samples=4,
    max_new_tokens=128,
    seed=17,
    sweeps=(
        TemperatureSweep(varied="forks", points=(point(0, 0.25), point(1, 0.5), point(5, 0.4))),
        TemperatureSweep(varied="rest", points=(point(0, 0.5), point(1, 0.5), point(5, 0.1))),
    ),
)


def replacement(
    kind: Literal["high", "low"], position: int, kept: float, other: float, token: str = "if"
) -> Replacement:
    return Replacement(
        prompt_id="p1",
        sample=0,
        position=position,
        kind=kind,
        entropy=1.25 if kind == "high" else 0.01,
        token=token,
        token_id=7,
        alternative=" so",
        alternative_id=8,
        alternative_logprob=-0.6931471805599453,
        alternative_weight=1.0,
        value_kept=kept,
        value_alternative=other,
        squared_gap=(kept - other) ** 2,
        continuations_kept=8,
        continuations_alternative=8,
    )


def group(positions: int, squared: float, half: float) -> GapGroup:
    return GapGroup(
        positions=positions,
        gap=interval(squared**0.5, half),
        squared_gap=interval(squared, half),
        resampled_squared_gap=interval(squared / 4, half / 4),
    )


BRANCHING = Branching(
    model="lab:game",
    task="lab:game",
    temperature=1.0,
    seed=17,
    keep_fraction=0.2,
    budget_tokens=50_000,
    spent_tokens=48_000,
    continuations=8,
    alternatives=1,
    prompts=3,
    pairs_possible=3,
    pairs_left_out=0,
    replacements=(
        replacement("high", 3, 0.25, 0.875, " If"),
        replacement("high", 9, 0.5, 0.125),
        replacement("low", 4, 0.5, 0.5),
    ),
    high=group(2, 0.25, 0.125),
    low=group(1, 0.0, 0.0625),
    difference=interval(0.25, 0.125),
    resampled_difference=interval(0.0625, 0.03125),
)


WORDS = (
    ("wait", 120, 1.5, 2.0),
    (" so", 110, 0.75, 1.0),
    ("ing", 130, 0.01, 0.03),
    ("+", 105, 0.0, 0.0),
)
"""(text, count, mean, p90), by falling mean."""  # fmt: skip


def write_store(root: Path, parts: Sequence[Sequence[Sequence[str]]]) -> list[Path]:
    """Parts of stored completions, each a list of token texts."""
    return make_store(
        root,
        *(
            [make_completion(10 * number + i, texts=texts) for i, texts in enumerate(part)]
            for number, part in enumerate(parts)
        ),
    )


def write_words(root: Path, words: Sequence[tuple[str, int, float, float]]) -> None:
    """words.parquet of (text, count, mean, p90)."""
    lines = [
        Word(token_id=i, text=text, count=count, mean=mean, p90=p90)
        for i, (text, count, mean, p90) in enumerate(words)
    ]
    words_module.write_words(RunDirectory(root).words_parquet, lines)


def write_analysis(
    root: Path,
    *results: Result,
    words: Sequence[tuple[str, int, float, float]] | None = WORDS,
    store: Sequence[Sequence[Sequence[str]]] = (),
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """A run directory with these results, and completions with these tokens."""
    root.mkdir(parents=True, exist_ok=True)
    for result in results:
        write_result(root, result)
    if words is not None:
        write_words(root, words)
    write_store(root, store)
    if settings is not None:
        write_json(root / "completions" / "analysis" / "settings.json", settings)
    return root


def whole_analysis(root: Path) -> Path:
    """Everything there can be, with contexts for some words."""
    return write_analysis(
        root,
        PATTERN.model_copy(update={"lab": LAB_TRUTH}),
        DYNAMICS,
        TEMPERATURE,
        BRANCHING,
        store=[[["so", " wait", " a", "+", "b"], ["wait", " so"]], [["x", "ing"]]],
        settings={"source": "sampled", "config": {"evaluation": {"seed": 17}}},
    )
