"""The token viewer: what of a run is shown, and as which packed arrays the page holds it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forkpoint.report.completion_index import read_index
from forkpoint.report.completions import (
    CHECKPOINT_BYTES,
    MOST_TOKENS,
    PAGE_BYTES_PER_TOKEN,
    ROLLOUT_BYTES,
    STORE_BYTES,
    ShownCompletion,
    ShownGroup,
    Sizes,
    Source,
    Vocabulary,
    choose,
    shares,
)
from forkpoint.report.data import RunData
from forkpoint.report.json_file import is_number
from forkpoint.report.packing import (
    LEVELS,
    LOG_STEP,
    MISSING,
    pack,
    pack_bits,
    pack_indices,
    quantise,
)
from forkpoint.report.rollout_source import read_rollout_source, rollout_sizes
from forkpoint.report.scored import (
    Scores,
    add_checkpoints,
    find_scores,
    read_scored_source,
)
from forkpoint.report.steps import StepFile, step_files
from forkpoint.report.store_source import mark_forks, read_store_source
from forkpoint.report.text import script_json, visible
from forkpoint.runs import RunDirectory
from forkpoint.runs.tokens import TokenStore
from forkpoint.runs.vocabulary import read_texts

COLOUR_EDGES = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Nats of entropy where the next of the nine token colours begins; the same in every report."""
SURPRISAL_EDGES = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
"""Nats of -ln p(chosen)."""
CHANGE_EDGES = (0.05, 0.2, 0.5, 1.0)
"""Nats of change of entropy, either way; nearer to 0 than the first there is no colour."""
ADVANTAGE_EDGES = (0.01, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class _Planned:
    """A source before its tokens are read."""

    sizes: Sizes
    per_token: int
    """Bytes."""
    read: Callable[[np.ndarray, int, Vocabulary], Source]
    """From the groups taken and the most tokens of a group."""


def viewer(run: RunData, tokens: int = MOST_TOKENS) -> dict[str, Any]:
    """What tokens.html.j2 needs: the sources with their numbers, and the payload.

    Args:
        tokens: of the page, about; of what is more, whole groups are drawn at random.

    Raises:
        RunError: a file of the run cannot be read.
    """
    vocabulary = Vocabulary()
    sources = read_sources(run, tokens * PAGE_BYTES_PER_TOKEN, vocabulary)
    name_alternatives(run, sources, vocabulary)
    return {
        "sources": [_summary(source) for source in sources],
        "shown": sum(len(source.shown) for source in sources),
        "payload": script_json(payload(sources, vocabulary)),
    }


# ---- the sources --------------------------------------------------------------------------------


def read_sources(run: RunData, available: int, vocabulary: Vocabulary) -> list[Source]:
    """The last and the first recorded step, the analysis, the dynamics: what has completions.

    Args:
        available: what they may add to the page.
    """
    files = step_files(RunDirectory(run.root).rollouts_dir)
    planned = [_plan_step(file) for file in reversed(files)]
    planned += _plan_analysis(run)
    wanted = [int(plan.sizes.bytes_P(plan.per_token).sum()) for plan in planned]
    sources = []
    for plan, share in zip(planned, shares(wanted, available), strict=True):
        taken = choose(plan.sizes.bytes_P(plan.per_token), share)
        sources.append(plan.read(taken, max(share // plan.per_token, 1), vocabulary))
    for source in sources:
        source.groups.sort(key=lambda group: (not group.mixed, group.number))
    return [source for source in sources if source.groups]


def name_alternatives(run: RunData, sources: list[Source], vocabulary: Vocabulary) -> None:
    """Give every alternative its place: with the text it was seen with, else the tokenizer's."""
    ids = np.unique(np.concatenate([_no_ids(), *map(_alternative_ids, sources)])).tolist()
    unseen = {i for i in ids if not vocabulary.has_text(i)}
    for i, text in read_texts(run.analysis_dir / "vocabulary.parquet", unseen).items():
        vocabulary.place(text, i)
    for i in ids:
        vocabulary.place_of_id(i)


def _plan_step(file: StepFile) -> _Planned:
    serials, sizes = rollout_sizes(file)

    def read(taken: np.ndarray, limit: int, vocabulary: Vocabulary) -> Source:
        return read_rollout_source(file, sizes, serials[taken], limit, vocabulary)

    return _Planned(sizes, ROLLOUT_BYTES, read)


def _plan_analysis(run: RunData) -> Iterator[_Planned]:
    """The token store, and what ``forkpoint dynamics`` scored if that is something else."""
    store = TokenStore(run.analysis_dir)
    paths = [store.completions_path(part) for part in store.parts()]
    dynamics = run.analysis("dynamics")
    names = [one.text("name") for one in dynamics.objects("checkpoints")] if dynamics else []
    scores = find_scores(run.analysis_dir, names)
    same = scores is not None and scores.are_of(paths)
    if paths:
        yield _plan_store(run, store, paths, scores if same else None)
    if scores is not None and not same:
        yield _plan_scored(run, scores)


def _plan_store(
    run: RunData, store: TokenStore, paths: list[Path], scores: Scores | None
) -> _Planned:
    summary = run.analysis("summary")
    threshold = summary.fields.get("threshold_nats") if summary else None
    index = read_index(paths)

    def read(taken: np.ndarray, limit: int, vocabulary: Vocabulary) -> Source:
        source = read_store_source(store, index, taken, limit, vocabulary)
        mark_forks(source, threshold if is_number(threshold) else None)
        if scores:
            add_checkpoints(scores, source)
        return source

    return _Planned(index.sizes, STORE_BYTES + _checkpoint_bytes(scores), read)


def _plan_scored(run: RunData, scores: Scores) -> _Planned:
    index = read_index(scores.completions)

    def read(taken: np.ndarray, limit: int, vocabulary: Vocabulary) -> Source:
        source = read_scored_source(scores, run.analysis_dir, index, taken, limit, vocabulary)
        mark_forks(source, None)
        return source

    return _Planned(index.sizes, ROLLOUT_BYTES + _checkpoint_bytes(scores), read)


def _checkpoint_bytes(scores: Scores | None) -> int:
    return CHECKPOINT_BYTES * len(scores.on_the_page) if scores else 0


def _summary(source: Source) -> dict[str, Any]:
    return {
        "key": source.key,
        "title": source.title,
        "folder": source.folder,
        "completions": source.completions,
        "tokens": source.tokens,
        "shown_completions": len(source.shown),
        "shown_tokens": sum(len(c.words_T) for c in source.shown),
        "checkpoints": len(source.checkpoints),
        "checkpoints_scored": source.checkpoints_scored,
    }


# ---- the payload --------------------------------------------------------------------------------


def payload(sources: list[Source], vocabulary: Vocabulary) -> dict[str, Any]:
    """What tokens_data.js unpacks. Single numbers keep 4 significant digits; unknown: null.

    Args:
        vocabulary: complete: its size decides how its places are packed.
    """
    packed = [_pack_source(source, vocabulary) for source in sources]
    return {
        "levels": LEVELS,
        "missing": MISSING,
        "logStep": LOG_STEP,
        "edges": {
            "entropy": COLOUR_EDGES,
            "surprisal": SURPRISAL_EDGES,
            "change": CHANGE_EDGES,
            "advantage": ADVANTAGE_EDGES,
        },
        "words": [text for text, _ in vocabulary.entries],
        "ids": [token_id for _, token_id in vocabulary.entries],
        "sources": packed,
    }


def _pack_source(source: Source, vocabulary: Vocabulary) -> dict[str, Any]:
    size = len(vocabulary.entries)
    return {
        "key": source.key,
        "title": source.title,
        "mark": source.mark,
        "markName": source.mark_name,
        "checkpoints": [visible(name) for name in source.checkpoints],
        "groups": [_pack_group(group) for group in source.groups],
        "words": pack_indices(source.stream("words_T"), size),
        "entropy": _pack_nats(source.stream("entropies_T")),
        "surprisal": _pack_nats(-source.stream("logprobs_T")),
        "marked": pack_bits(source.stream("marked_T")),
        "scored": _pack_checkpoints(source),
        "alternatives": _pack_alternatives(source, vocabulary),
    }


def _pack_nats(values_T: np.ndarray) -> dict[str, Any]:
    codes, top = quantise(values_T)
    return {"top": top, "codes": pack(codes)}


def _pack_checkpoints(source: Source) -> list[dict[str, Any]]:
    """One stream per checkpoint; nan for completions that were not scored."""
    packed = []
    for place in range(len(source.checkpoints)):
        parts = [
            np.full(len(one.words_T), np.nan)
            if one.entropies_CT is None
            else one.entropies_CT[place]
            for one in source.shown
        ]
        packed.append(_pack_nats(np.concatenate(parts)))
    return packed


def _alternative_ids(source: Source) -> np.ndarray:
    """int64, of all tokens in order."""
    parts = [one.alternatives.token_ids_A for one in source.shown if one.alternatives is not None]
    return np.concatenate([_no_ids(), *parts])


def _no_ids() -> np.ndarray:
    return np.zeros(0, np.int64)


def _pack_alternatives(source: Source, vocabulary: Vocabulary) -> dict[str, Any] | None:
    ids, inverse = np.unique(_alternative_ids(source), return_inverse=True)
    if not len(ids):
        return None
    found = [one.alternatives for one in source.shown if one.alternatives is not None]
    places = np.asarray([vocabulary.place_of_id(i) for i in ids.tolist()], np.int64)
    return {
        "counts": pack(np.concatenate([one.counts_T for one in found])),
        "words": pack_indices(places[inverse], len(vocabulary.entries)),
        "codes": pack(np.concatenate([one.codes_A for one in found])),
    }


def _pack_group(group: ShownGroup) -> dict[str, Any]:
    return {
        "number": group.number,
        "id": visible(group.prompt_id),
        "prompt": visible(group.prompt),
        "accepted": group.accepted,
        "sampled": group.sampled,
        "completions": [_pack_completion(completion) for completion in group.completions],
    }


def _pack_completion(completion: ShownCompletion) -> list[Any]:
    """[sample, tokens shown, length, right, truncated, reward, advantage, error]."""
    return [
        completion.sample,
        len(completion.words_T),
        completion.length,
        completion.right,
        int(completion.truncated),
        _short(completion.reward),
        _short(completion.advantage),
        visible(completion.error) if completion.error else None,
    ]


def _short(value: float | None) -> float | None:
    """4 significant digits; whole numbers without a decimal point."""
    if not is_number(value):
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded == int(rounded) else rounded
