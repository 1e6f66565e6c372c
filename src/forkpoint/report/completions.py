"""The completions that the viewer shows: what a run has, which groups are taken, their reading."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from forkpoint.report.data import RunData
from forkpoint.report.steps import StepFile, step_files
from forkpoint.report.text import number
from forkpoint.runs import RunDirectory
from forkpoint.runs.completions import (
    StoredCompletion,
    part_files,
    read_columns,
    read_completions,
)
from forkpoint.runs.results import Dynamics, Pattern, find_result

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
MOST_CHECKPOINTS = 6
"""Whose entropies the page holds: the first, the last, and some evenly between."""
COMPARED = 256
"""Completions that are looked at to tell whether two sets of them are the same."""


@dataclass(slots=True, kw_only=True)
class ShownCompletion:
    """One completion on the page, of which the first ``length`` tokens are shown."""

    stored: StoredCompletion
    length: int
    """Less than the completion has only if even one group is too large."""
    entropies_CT: np.ndarray | None = None
    """float32 [C, T] nats, by the source's checkpoints; nan where one did not score the token."""


@dataclass(slots=True, kw_only=True)
class ShownGroup:
    """The completions of one prompt, in the order they were sampled."""

    number: int
    """The prompt's serial; for links and for the order."""
    prompt_id: str
    prompt: str
    accepted: bool | None
    """Whether it was trained on; None where nothing is trained."""
    sampled: int
    """How many there are; ``completions`` are fewer if not even one group fits on the page."""
    completions: list[ShownCompletion] = field(default_factory=list)

    @property
    def mixed(self) -> bool:
        return len({one.stored.score.reward for one in self.completions}) > 1


@dataclass(slots=True, kw_only=True)
class Source:
    """Completions of one recorded step, of the analysis, or of the dynamics."""

    key: str
    """For links: ``step-16``, ``analysis``."""
    title: str
    folder: str
    """Where all of them are, in the run directory."""
    paths: list[Path]
    per_token: int
    """Bytes that a token adds to the page."""
    mark: str = "got a policy gradient"
    """What a line under a token says of it."""
    mark_name: str = "selected"
    """The same in a word or two."""
    threshold: float | None = None
    """Nats from which tokens are marked; None: those are that were selected."""
    groups: list[ShownGroup] = field(default_factory=list)
    completions: int = 0
    """In the files."""
    tokens: int = 0
    """In the files."""
    checkpoints: "Checkpoints | None" = None
    """What scored the same completions."""

    @property
    def shown(self) -> list[ShownCompletion]:
        return [completion for group in self.groups for completion in group.completions]

    def stream(
        self, of: "Callable[[StoredCompletion], Sequence[bool] | np.ndarray | None]"
    ) -> np.ndarray:
        """[T] a number of each token shown, one completion after the other; nan if not known."""
        parts = [np.zeros(0, np.float32)]
        for one in self.shown:
            values = of(one.stored)
            unknown = np.full(one.length, np.nan, np.float32)
            parts.append(unknown if values is None else np.asarray(values)[: one.length])
        return np.concatenate(parts)


def read_sources(run: RunData, available: int) -> list[Source]:
    """The last and the first recorded step, the analysis, the dynamics: what has completions.

    Args:
        available: bytes that they may add to the page; groups are drawn at random from more.

    Raises:
        RunError: a file cannot be read.
    """
    sources = list(_sources(run))
    indices = [_Index(source) for source in sources]
    wanted = [int(index.bytes_P.sum()) for index in indices]
    for index, share in zip(indices, shares(wanted, available), strict=True):
        index.read_groups(share)
    return [source for source in sources if source.groups]


# ---- what a run has -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The files of ``forkpoint dynamics``: the same completions, scored by each checkpoint."""

    paths: list[Path]
    names: list[str]

    @property
    def on_the_page(self) -> list[int]:
        """Indices, evenly spaced, with the first and the last."""
        count = min(len(self.names), MOST_CHECKPOINTS)
        return [round(i * (len(self.names) - 1) / max(count - 1, 1)) for i in range(count)]

    @property
    def bytes_per_token(self) -> int:
        return CHECKPOINT_BYTES * len(self.on_the_page)

    def are_of(self, paths: list[Path]) -> bool:
        """Whether these completions were scored: by the first ones both have."""
        ours = dict(islice(_token_ids(self.paths[:1]), COMPARED))
        theirs = [pair for pair in islice(_token_ids(paths), COMPARED) if pair[0] in ours]
        return bool(theirs) and all(ours[key] == ids for key, ids in theirs)

    def add_to(self, groups: Sequence[ShownGroup]) -> None:
        """Give each completion the entropies of the checkpoints that are on the page."""
        shown = {
            (group.prompt_id, one.stored.sample): one
            for group in groups
            for one in group.completions
        }
        taken = self.on_the_page
        for place, checkpoint in enumerate(taken):
            for columns in read_columns([self.paths[checkpoint]], [*IDENTITY, "entropies"]):
                keys = zip(*map(columns.values, IDENTITY), strict=True)
                for key, entropies in zip(keys, columns.arrays("entropies"), strict=True):
                    one = shown.get(key)
                    if one is None or entropies is None:
                        continue
                    if one.entropies_CT is None:
                        one.entropies_CT = np.full((len(taken), one.length), np.nan, np.float32)
                    if len(entropies) == len(one.stored.completion):
                        one.entropies_CT[place] = entropies[: one.length]


IDENTITY = ("prompt_id", "sample")
"""What a completion is known by in all files of one analysis."""


def _token_ids(paths: Sequence[Path]) -> Iterator[tuple[tuple[str, int], list[int]]]:
    for columns in read_columns(paths, [*IDENTITY, "token_ids"]):
        keys = zip(*map(columns.values, IDENTITY), strict=True)
        yield from zip(keys, columns.values("token_ids"), strict=True)


def find_checkpoints(root: Path) -> Checkpoints | None:
    """What ``forkpoint dynamics`` left in a run directory; None if it is not complete."""
    dynamics = find_result(root, Dynamics)
    folder = RunDirectory(root).completions_dir("dynamics")
    paths = sorted(folder.glob("checkpoint_*.parquet"))
    if dynamics is None or len(paths) != len(dynamics.checkpoints):
        return None
    return Checkpoints(paths, [checkpoint.name for checkpoint in dynamics.checkpoints])


def _sources(run: RunData) -> Iterator[Source]:
    directory = RunDirectory(run.root)
    for file in reversed(step_files(directory.completions_dir("train"))):
        yield _step_source(file)
    checkpoints = find_checkpoints(run.root)
    paths = part_files(directory.completions_dir("analysis"))
    same = checkpoints is not None and checkpoints.are_of(paths)
    if paths:
        pattern = find_result(run.root, Pattern)
        yield Source(
            key="analysis",
            title="analysis",
            folder="completions/analysis/",
            paths=paths,
            per_token=STORE_BYTES,
            threshold=pattern.entropy_threshold if pattern else float("nan"),
            checkpoints=checkpoints if same else None,
        )
    if checkpoints is not None and not same:
        yield Source(
            key="dynamics",
            title="dynamics",
            folder="completions/dynamics/",
            paths=checkpoints.paths[-1:],
            per_token=ROLLOUT_BYTES,
            threshold=float("nan"),
            checkpoints=checkpoints,
        )


def _step_source(file: StepFile) -> Source:
    return Source(
        key=f"step-{file.step}",
        title=f"step {file.step}",
        folder="completions/train/",
        paths=[file.path],
        per_token=ROLLOUT_BYTES,
    )


# ---- which groups -------------------------------------------------------------------------------


class _Index:
    """How large each completion and group of a source is."""

    def __init__(self, source: Source) -> None:
        serials, lengths, prompts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], []
        for columns in read_columns(source.paths, ["serial", "prompt", "token_ids"]):
            serials.append(columns.numbers("serial").astype(np.int64))
            lengths.append(columns.lengths())
            prompts += [len((text or "").encode()) for text in columns.values("prompt")]
        self.source = source
        self.tokens_N = np.concatenate(lengths)
        serials_P, first_P, self.group_N = np.unique(
            np.concatenate(serials), return_index=True, return_inverse=True
        )
        completions_P = np.bincount(self.group_N, minlength=len(serials_P))
        self.tokens_P = np.bincount(self.group_N, self.tokens_N, len(serials_P)).astype(np.int64)
        scored = source.checkpoints.bytes_per_token if source.checkpoints else 0
        self.per_token = source.per_token + scored
        prompt_bytes_P = np.asarray(prompts, np.int64)[first_P]
        self.bytes_P = (
            self.tokens_P * self.per_token + completions_P * COMPLETION_BYTES + prompt_bytes_P
        )
        source.completions, source.tokens = len(self.tokens_N), int(self.tokens_N.sum())

    def read_groups(self, available: int) -> None:
        """Read the groups that fit into the source, those with different rewards first."""
        taken = choose(self.bytes_P, available)
        taken_N = np.isin(self.group_N, taken)
        shown_N = self._shown_tokens(taken, max(available // self.per_token, 1))[taken_N]
        groups: dict[int, ShownGroup] = {}
        rows = read_completions(self.source.paths, taken_N)
        for stored, shown in zip(rows, shown_N.tolist(), strict=True):
            group = groups.setdefault(stored.serial, _group(stored))
            group.sampled += 1
            if shown or not len(stored.completion):
                group.completions.append(ShownCompletion(stored=stored, length=shown))
        for group in groups.values():
            group.completions.sort(key=lambda one: one.stored.sample)
        source = self.source
        source.groups = sorted(groups.values(), key=lambda g: (not g.mixed, g.number))
        if source.checkpoints is not None:
            source.checkpoints.add_to(source.groups)
        if source.threshold is not None:
            _set_threshold(source, source.threshold)

    def _shown_tokens(self, groups: np.ndarray, limit: int) -> np.ndarray:
        """int64 [N], how many tokens of each completion are shown: its first ones.

        Args:
            limit: tokens of a group at most; they go to its first completions.
        """
        shown_N = self.tokens_N.copy()
        for group in groups[self.tokens_P[groups] > limit]:
            members = np.flatnonzero(self.group_N == group)
            before = np.cumsum(self.tokens_N[members]) - self.tokens_N[members]
            shown_N[members] = np.clip(limit - before, 0, self.tokens_N[members])
        return shown_N


def _group(stored: StoredCompletion) -> ShownGroup:
    return ShownGroup(
        number=stored.serial,
        prompt_id=stored.prompt_id,
        prompt=stored.prompt,
        accepted=stored.accepted,
        sampled=0,
    )


def _set_threshold(source: Source, threshold: float) -> None:
    """Mark tokens from the threshold on; if it is nan, the top fifth of those shown."""
    if np.isnan(threshold):
        entropies_T = source.stream(lambda stored: stored.completion.entropies)
        known_T = entropies_T[np.isfinite(entropies_T)]
        source.threshold = float(np.quantile(known_T, 0.8)) if len(known_T) else 0.0
        source.mark_name, source.mark = "top fifth", "is in the top fifth by entropy"
    else:
        source.mark_name = "above threshold"
        source.mark = f"has at least {number(threshold)} nats, the threshold of the analysis"


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
