"""The laboratory knows its true forks: does entropy find them, and is it the right number?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from forkpoint.lab import World, fork_detection, truth_of
from forkpoint.runs.completions import read_columns
from forkpoint.runs.results import ForkTruth

MOST_TOKENS = 2**22
"""Tokens looked at: average precision sorts them all, so there must be an end."""


def lab_truth(
    paths: Sequence[Path], world: World, keep_fraction: float, *, temperature: float
) -> ForkTruth | None:
    """Measured entropies against the truth, up to each completion's first illegal word.

    Args:
        keep_fraction: precision and recall are those of this share of highest entropies.
        temperature: the true entropies are known at 1 only.

    Returns:
        None if the files hold answers to other problems than the world's.
    """
    measured, true, forks = _collect(paths, world)
    if not len(measured):
        return None
    detection = fork_detection(measured, forks, keep_fraction)  # pyright: ignore[reportArgumentType]
    at_one = temperature == 1.0
    return ForkTruth(
        tokens=len(measured),
        fork_share=float(forks.mean()),
        precision=detection.precision if forks.any() else None,
        recall=detection.recall if forks.any() else None,
        average_precision=detection.average_precision if forks.any() else None,
        fork_entropy_true=_mean(true[forks]) if at_one else None,
        fork_entropy_measured=_mean(measured[forks]),
        forced_entropy_measured=_mean(measured[~forks]),
        entropy_error=_mean(np.abs(measured - true)) if at_one else None,
    )


def _collect(paths: Sequence[Path], world: World) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measured entropy, true entropy and whether a fork, of the tokens that have a truth."""
    found = [(np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool))]
    tokens = 0
    for columns in read_columns(paths, ["prompt", "pieces", "entropies"]):
        prompts, pieces_B = columns.values("prompt"), columns.values("pieces")
        values_T, ends_B = (
            columns.flat("entropies").astype(float),
            columns.lengths("entropies").cumsum(),
        )
        rows = zip(prompts, pieces_B, np.split(values_T, ends_B[:-1]), strict=True)
        for prompt, pieces, entropies in rows:
            problem = world.read(prompt)
            if problem is None:
                return found[0]
            truth = truth_of(world, problem, [piece.strip() for piece in pieces])
            legal = np.isfinite(truth.entropies)
            found.append(
                (
                    entropies[legal],
                    np.array(truth.entropies)[legal],
                    np.array(truth.forks, dtype=bool)[legal],
                )
            )
            tokens += int(legal.sum())
        if tokens >= MOST_TOKENS:
            break
    measured, true, forks = map(np.concatenate, zip(*found, strict=True))
    return measured, true, forks


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
