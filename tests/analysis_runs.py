"""Small analyses made by hand, for the tests of the report: the files of docs/analysis.md."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forkpoint.analysis import words as words_module
from forkpoint.analysis.words import Word
from forkpoint.runs import RunDirectory
from tests.stored import make_completion, make_store

SUMMARY: dict[str, Any] = {
    "schema": 1,
    "model": "lab",
    "source": "sampled",
    "task": "lab",
    "temperature": 1.0,
    "tokens": 1200,
    "completions": 24,
    "prompts": 6,
    "keep_fraction": 0.2,
    "mean_entropy_nats": 0.25,
    "share_below_0.01": 0.625,
    "threshold_nats": 0.5,
    "kept_fraction": 0.2025,
    "entropy_share_of_top": 0.875,
    "percentiles": {str(q): (q / 100) ** 3 for q in range(0, 101, 5)},
    "histogram": {"edges": [0.0, 0.25, 0.5, 0.75, 1.0], "counts": [900, 150, 100, 50]},
    "by_position": [
        {"from": 0, "to": 32, "tokens": 768, "mean": 0.375},
        {"from": 32, "to": 64, "tokens": 432, "mean": 0.125},
    ],
    "by_correctness": [
        {
            "label": "correct",
            "completions": 9,
            "tokens": 400,
            "mean": 0.2,
            "low": 0.15,
            "high": 0.26,
        },
        {
            "label": "wrong",
            "completions": 15,
            "tokens": 800,
            "mean": 0.275,
            "low": 0.25,
            "high": 0.3,
        },
    ],
    "by_length": [{"from": 40, "to": 60, "completions": 24, "mean": 0.25}],
    "accuracy": {"value": 0.375, "low": 0.2, "high": 0.55, "n": 6},
    "words": {"min_count": 100, "kinds": 4},
}

LAB_TRUTH = {
    "fork_precision": 0.9,
    "fork_recall": 0.8,
    "fork_average_precision": 0.95,
    "fork_share": 0.225,
    "entropy_error_vs_analytic_nats": 0.0125,
    "forks_true_nats": 0.75,
    "forks_measured_nats": 0.7,
    "forced_measured_nats": 0.02,
}


def interval(value: float, half: float = 0.0) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


DYNAMICS: dict[str, Any] = {
    "schema": 1,
    "checkpoints": [
        {"name": "base", "step": 0, "path": "lab"},
        {"name": "step_00010", "step": 10, "path": "c/10"},
        {"name": "step_00020", "step": 20, "path": "c/20"},
    ],
    "keep_fraction": 0.2,
    "tokens": 5000,
    "prompts": 16,
    "overlap_with_base": [interval(1.0), interval(0.9375, 0.0125), interval(0.875, 0.025)],
    "overlap_with_final": [interval(0.875, 0.025), interval(0.95, 0.01), interval(1.0)],
    "change_by_bin": [
        {
            "from_percentile": 5 * i,
            "to_percentile": 5 * i + 5,
            "from_nats": i / 20,
            "to_nats": (i + 1) / 20,
            "tokens": 250,
            "mean": 10.0 ** (i / 5 - 5) * (-1 if i == 3 else 1),
            "low": -1e-3,
            "high": 0.1,
        }
        for i in range(20)
    ],
    "percentiles": {
        str(q): [q / 100, q / 90, q / 80] for q in (0, 20, 40, 60, 80, 90, 95, 99, 100)
    },
}


def point(temperature: float, accuracy: float) -> dict[str, Any]:
    return {
        "temperature": temperature,
        "accuracy": {**interval(accuracy, 0.05), "n": 100},
        "length_mean": 64.0,
        "truncated_fraction": 0.125,
        "difference": interval(accuracy - 0.5, 0.03125),
    }


TEMPERATURE: dict[str, Any] = {
    "schema": 1,
    "model": "lab",
    "task": "lab",
    "threshold_nats": 0.5,
    "threshold_percentile": 80,
    "share_above": 0.2,
    "problems": 100,
    "samples": 4,
    "sweeps": [
        {"varied": "forks", "fixed": 1.0, "points": [point(0, 0.25), point(1, 0.5), point(5, 0.4)]},
        {"varied": "rest", "fixed": 1.0, "points": [point(0, 0.5), point(1, 0.5), point(5, 0.1)]},
    ],
}


def position(
    kind: str, place: int, kept: float, alternative: float, token: str = "if"
) -> dict[str, Any]:
    return {
        "prompt_id": "p1",
        "sample": 0,
        "position": place,
        "kind": kind,
        "entropy": 1.25 if kind == "high" else 0.01,
        "token": token,
        "token_id": 7,
        "alternative": " so",
        "alternative_id": 8,
        "alternative_logprob": -0.6931471805599453,
        "value_kept": kept,
        "value_alternative": alternative,
        "n": 8,
    }


def group(positions: int, squared: float, half: float) -> dict[str, Any]:
    gap = interval(squared**0.5, half)
    return {
        "positions": positions,
        "gap": gap,
        "squared_gap": interval(squared, half),
        "resampled_squared_gap": interval(squared / 4, half / 4),
    }


BRANCHING: dict[str, Any] = {
    "schema": 1,
    "model": "lab",
    "task": "lab",
    "budget_tokens": 50_000,
    "spent_tokens": 48_000,
    "continuations": 8,
    "positions": [
        position("high", 3, 0.25, 0.875, " If"),
        position("high", 9, 0.5, 0.125),
        position("low", 4, 0.5, 0.5),
    ],
    "groups": {"high": group(2, 0.25, 0.125), "low": group(1, 0.0, 0.0625)},
    "difference": interval(0.25, 0.125),
    "resampled_difference": interval(0.0625, 0.03125),
}


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
    *,
    words: Sequence[tuple[str, int, float, float]] | None = WORDS,
    store: Sequence[Sequence[Sequence[str]]] = (),
    settings: Mapping[str, Any] | None = None,
    **files: Mapping[str, Any],
) -> Path:
    """``root``/analysis with the JSON files named by the keywords: ``summary=SUMMARY``."""
    (root / "analysis").mkdir(parents=True)
    for name, value in files.items():
        (root / "analysis" / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    if settings is not None:
        (root / "analysis" / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    if words is not None:
        write_words(root, words)
    write_store(root, store)
    return root


def whole_analysis(root: Path) -> Path:
    """Everything there can be, with contexts for some words."""
    return write_analysis(
        root,
        store=[[["so", " wait", " a", "+", "b"], ["wait", " so"]], [["x", "ing"]]],
        settings={"schema": 1, "source": "sampled", "config": {"evaluation": {"seed": 17}}},
        summary={**SUMMARY, **LAB_TRUTH},
        dynamics=DYNAMICS,
        temperature=TEMPERATURE,
        branching=BRANCHING,
    )
