"""The completions that the viewer shows: what is known of them, and which groups are taken."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from forkpoint.report.text import visible

MOST_TOKENS = 500_000
"""Of the page, with their alternatives; it is then below 10 MB. Twice as many without."""
PAGE_BYTES_PER_TOKEN = 17
"""Of what ``MOST_TOKENS`` may add to the page."""
STORE_BYTES = 16
"""On the page, of a token with its alternatives; random ones, the worst to deflate, take 12."""
ROLLOUT_BYTES = 8
"""Of a token without alternatives."""
CHECKPOINT_BYTES = 3
"""Of a token, for each checkpoint that scored it."""
COMPLETION_BYTES = 80
"""Of what stands over a completion."""
PIECE = "·"
"""Shown for a token that adds no text: a piece of a character, a token that ends the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large the groups of a source are. Made by the readers; eaten by ``choose``."""

    completions_P: np.ndarray
    """int64 [P], answers of each group."""
    tokens_P: np.ndarray
    """int64 [P]."""
    prompt_bytes_P: np.ndarray
    """int64 [P]."""

    def bytes_P(self, per_token: int) -> np.ndarray:
        """What each group adds to the page, about."""
        size_P = self.tokens_P * per_token + self.completions_P * COMPLETION_BYTES
        return size_P + self.prompt_bytes_P


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternatives:
    """The most likely tokens beside the chosen one, of the tokens of a completion in order."""

    counts_T: np.ndarray
    """uint8 [T], how many a token has."""
    token_ids_A: np.ndarray
    """int64 [A], A the sum of the counts."""
    codes_A: np.ndarray
    """uint8 [A], ``packing.probability_codes``."""


@dataclass(slots=True, kw_only=True)
class ShownCompletion:
    """One answer on the page. The ``_T`` streams have one entry per token shown."""

    sample: int
    reward: float | None
    right: bool | None
    truncated: bool
    error: str | None
    advantage: float | None
    length: int
    """Of the whole completion; more than are shown if even one group is too large."""
    words_T: np.ndarray
    """int64, places in the ``Vocabulary``."""
    entropies_T: np.ndarray
    """float32 nats, nan where unknown."""
    logprobs_T: np.ndarray
    """float32 nats."""
    marked_T: np.ndarray
    """bool: selected, or what the source says instead."""
    alternatives: Alternatives | None = None
    entropies_CT: np.ndarray | None = None
    """float32 [C, T] nats, by the source's checkpoints; nan where one did not score the token."""


@dataclass(slots=True, kw_only=True)
class ShownGroup:
    """The answers to one prompt, in the order they were sampled."""

    number: int
    """Of the prompt in the source's files; for links and for the order."""
    prompt_id: str
    prompt: str
    accepted: bool | None
    """Whether it was trained on; None where nothing is trained."""
    sampled: int
    """Answers there are; ``completions`` are fewer if not even one group fits on the page."""
    completions: list[ShownCompletion] = field(default_factory=list)

    @property
    def mixed(self) -> bool:
        return len({completion.reward for completion in self.completions}) > 1


@dataclass(slots=True, kw_only=True)
class Source:
    """Completions of one recorded step, or of the analysis."""

    key: str
    """For links: ``step-16``, ``analysis``."""
    title: str
    folder: str
    """Where all of them are, in the run directory."""
    mark: str
    """What a line under a token says: the token ``got a policy gradient``."""
    mark_name: str
    """In a word or two: ``selected``."""
    groups: list[ShownGroup]
    completions: int
    """In the files."""
    tokens: int
    """In the files."""
    checkpoints: list[str] = field(default_factory=list)
    """Names; what ``entropies_CT`` is of."""
    checkpoints_scored: int = 0
    """In the files."""

    @property
    def shown(self) -> list[ShownCompletion]:
        return [completion for group in self.groups for completion in group.completions]

    def stream(self, name: str) -> np.ndarray:
        """[T], the stream ``name`` of all shown completions, one after the other."""
        parts = [getattr(completion, name) for completion in self.shown]
        return np.concatenate(parts) if parts else np.zeros(0)


class Vocabulary:
    """(text as it stands, token id) -> its place in the page's one list of words."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, int], int] = {}
        self._first: dict[int, int] = {}

    def place(self, text: str, token_id: int) -> int:
        """The place of a token, which gets one if it has none; without a text it is a ``·``."""
        shown = visible(text, newline="↵\n") or PIECE
        place = self.entries.setdefault((shown, token_id), len(self.entries))
        if shown != PIECE:
            self._first.setdefault(token_id, place)
        return place

    def has_text(self, token_id: int) -> bool:
        """Whether a token has a place with a text."""
        return token_id in self._first

    def place_of_id(self, token_id: int) -> int:
        """A place where this token has a text; a place without one if it was never seen."""
        known = self._first.get(token_id)
        if known is None:
            return self.entries.setdefault(("", token_id), len(self.entries))
        return known


# ---- which groups -------------------------------------------------------------------------------


def shares(wanted: Sequence[int], available: int) -> list[int]:
    """What each of some that want a part of ``available`` gets: equal parts, none more than it
    wants, what one leaves to the others."""
    given = [0] * len(wanted)
    by_size = sorted(range(len(wanted)), key=lambda i: wanted[i])
    for done, i in enumerate(by_size):
        given[i] = min(wanted[i], available // (len(wanted) - done))
        available -= given[i]
    return given


def choose(bytes_P: np.ndarray, available: int) -> np.ndarray:
    """Indices of the groups to show, ascending: all, or as many as fit, drawn without replacement.

    The draw is the same in every report. It ends at the first group that does not fit; the first
    group drawn is always taken, and cut by the reader if it does not fit.
    """
    order = np.random.default_rng(0).permutation(len(bytes_P))
    if int(bytes_P.sum()) <= available:
        return np.sort(order)
    fitting = int((np.cumsum(bytes_P[order]) <= available).sum())
    return np.sort(order[: max(fitting, 1)])
