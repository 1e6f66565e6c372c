"""From n verdicts of each problem to avg@n's error, pass@k and maj@k, exactly.

Each is an average over all C(n, k) ways to choose k of the n answers that were drawn, so nothing
here is random, and k answers are never more than there are.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from math import comb

from forkpoint.errors import ConfigError


def counts(n: int) -> list[int]:
    """The k that are reported of n answers: 1, 2, 4, .. and n."""
    return [*(2**i for i in range(n.bit_length()) if 2**i < n), n]


def sampling_error(right_PG: Sequence[Sequence[bool]]) -> float | None:
    """The standard error of the mean accuracy of P problems that comes from the draws alone.

    sqrt( sum_p a_p (1 - a_p) / (n - 1) ) / P, with a_p the share of right answers of problem p:
    a_p (1 - a_p) n / (n - 1) is the unbiased variance of one verdict. None if n is 1.
    """
    n = min(len(right_G) for right_G in right_PG)
    if n < 2:
        return None
    shares_P = [sum(right_G) / len(right_G) for right_G in right_PG]
    return math.sqrt(sum(a * (1 - a) / (n - 1) for a in shares_P)) / len(shares_P)


def pass_at(right: int, n: int, k: int) -> float:
    """The chance that k of the n answers, chosen at random, hold a right one.

    1 - C(n - right, k) / C(n, k)   (Chen et al. 2021, arXiv 2107.03374)

    Raises:
        ConfigError: k is not in 1..n, or ``right`` not in 0..n.
    """
    _check(right, n, k)
    return 1 - comb(n - right, k) / comb(n, k)


def majority_at(right: int, wrong: Sequence[int], silent: int, k: int) -> float:
    """The chance that the most frequent answer among k, chosen at random, is right.

    Where t answers are equally frequent, the right one among them counts 1/t. Completions without
    an answer are chosen too, and do not vote.

    Args:
        right: completions with the right answer.
        wrong: how many completions give each of the wrong answers.
        silent: completions without an answer.

    Raises:
        ConfigError: k is not in 1..n, n being all of them together.
    """
    n = right + sum(wrong) + silent
    _check(right, n, k)
    chance = Fraction(0)
    for votes in range(1, min(right, k) + 1):
        chance += comb(right, votes) * _beaten(votes, wrong, silent, k - votes)
    return float(chance / comb(n, k))


def _beaten(votes: int, wrong: Sequence[int], silent: int, others: int) -> Fraction:
    """The ways to choose ``others`` completions that are not right so that no wrong answer has more
    than ``votes``, each divided by the answers that lead then."""
    ways = {(0, 1): 1}  # (chosen so far, answers with as many votes) -> ways
    for size in wrong:
        more: dict[tuple[int, int], int] = {}
        for (chosen, leaders), count in ways.items():
            for taken in range(min(size, votes, others - chosen) + 1):
                key = (chosen + taken, leaders + (taken == votes))
                more[key] = more.get(key, 0) + count * comb(size, taken)
        ways = more
    return sum(
        (
            Fraction(count * comb(silent, others - chosen), leaders)
            for (chosen, leaders), count in ways.items()
        ),
        Fraction(0),
    )


def _check(right: int, n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ConfigError(f"k = {k} of {n} answers to a problem: k is 1 at least and {n} at most")
    if not 0 <= right <= n:
        raise ConfigError(f"{right} right answers of {n}")
