"""The true forks and true entropies of a text, and how well measured entropy finds the forks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from forkpoint.lab.world import Columns, IllegalWordError, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is true of each word of a text, up to its first illegal word."""

    forks: tuple[bool, ...]
    """Whether more than one word could stand here."""
    entropies: tuple[float, ...]
    """Nats, of the demonstration policy's distribution; nan after the first illegal word."""
    legal_words: int
    """Words before the first illegal one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkDetection:
    """How well "high entropy" says "fork"."""

    precision: float
    recall: float
    average_precision: float


def truth_of(world: World, columns: Columns, words: Sequence[str]) -> Truth:
    """Walk through a text and read off what could have stood at each position."""
    position = world.begin(columns)
    forks: list[bool] = []
    entropies: list[float] = []
    legal = len(words)
    for index, word in enumerate(words):
        distribution = position.distribution()
        forks.append(len(distribution) > 1)
        entropies.append(abs(sum(p * math.log(p) for p in distribution.values())))
        try:
            position.advance(word)
        except IllegalWordError:
            legal = index
            break
    rest = len(words) - len(forks)
    return Truth(
        forks=(*forks, *[False] * rest),
        entropies=(*entropies, *[math.nan] * rest),
        legal_words=legal,
    )


def fork_detection(
    entropies: Sequence[float], forks: Sequence[bool], keep_fraction: float
) -> ForkDetection:
    """Precision and recall of the k = ceil(keep_fraction n) highest entropies, and the average
    precision over all thresholds.

    Equal entropies enter together: the precision and recall of a set that ends inside a run of
    equal values are their expectation over a random order of the run, and average precision has
    one threshold per distinct value, AP = sum_i (recall_i - recall_{i-1}) precision_i.
    """
    values = np.asarray(entropies, dtype=np.float64)
    truth = np.asarray(forks, dtype=np.float64)
    total = truth.sum()
    if total == 0:
        return ForkDetection(precision=math.nan, recall=math.nan, average_precision=math.nan)
    order = np.argsort(-values, kind="stable")
    values, truth = values[order], truth[order]
    ends = np.flatnonzero(np.append(np.diff(values) != 0, True)) + 1  # sizes at distinct values
    hits = np.cumsum(truth)[ends - 1]
    kept = math.ceil(Fraction(str(keep_fraction)) * len(values))  # of the decimal that was written
    expected = float(np.interp(kept, np.append(0, ends), np.append(0.0, hits)))
    recall = hits / total
    steps = np.diff([0.0, *recall])
    return ForkDetection(
        precision=expected / kept,
        recall=expected / float(total),
        average_precision=float((steps * hits / ends).sum()),
    )
