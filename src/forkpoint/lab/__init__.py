"""The laboratory world: a tiny language in which every fork and every entropy is known.

Answers are arithmetic games in words. A few words are free decisions (which two numbers, which
operator, try again or stop) and the rest is forced (results, punctuation, repetition), so the true
forks of a text, and the true entropy of the demonstration policy at each of its positions, are
functions: see ``truth``. A policy of under a million weights, trained on random legal play, is
shipped in ``base/``; reinforcement learning teaches it to win.
"""

from pathlib import Path

from forkpoint.lab.problems import draw_problem, verify
from forkpoint.lab.truth import ForkDetection, fork_detection, truth_of
from forkpoint.lab.world import EOS, LabWorld, Walk

BASE_POLICY = Path(__file__).parent / "base"
"""The shipped policy, as transformers reads it."""

__all__ = [
    "BASE_POLICY",
    "EOS",
    "ForkDetection",
    "LabWorld",
    "Walk",
    "draw_problem",
    "fork_detection",
    "truth_of",
    "verify",
]
