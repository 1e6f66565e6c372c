"""Stored completions made by hand, and files of them as a run directory has."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from forkpoint.runs import RunDirectory
from forkpoint.runs.completions import StoredCompletion, part_file, part_files, write_completions
from forkpoint.runs.results import CheckpointEntropy, Dynamics, Estimate, Pattern, write_result
from forkpoint.types import Completion, FinishReason, Score


def make_completion(
    number: int = 0,
    sample: int = 0,
    *,
    texts: Sequence[str] = ("a", " b"),
    ids: Sequence[int] | None = None,
    entropies: Sequence[float] | None = None,
    known: bool = True,
    logprobs: Sequence[float] | np.ndarray | None = None,
    top: Sequence[Sequence[tuple[int, float]]] | None = None,
    text: str | None = None,
    finish_reason: str = "stop",
    reward: float | None = 1.0,
    **fields: Any,
) -> StoredCompletion:
    """A completion; what is not given is made up.

    Args:
        known: whether there are entropies.
        top: (token id, probability) of the likely tokens of each token.
        fields: of ``StoredCompletion``, or verdict, parts and error of its score.
    """
    length = len(texts)
    ids = list(range(length)) if ids is None else list(ids)
    top = [[(i, 0.75)] for i in ids] if top is None else top
    width = len(top[0]) if top else 0
    score = {"verdict": reward, **{n: fields.pop(n) for n in SCORE if n in fields}}
    arrays: dict[str, Any] = {
        "token_ids": ids,
        "logprobs": [-0.25] * length if logprobs is None else logprobs,
        "entropies": None if not known else [0.5] * length if entropies is None else entropies,
        "top_ids": np.array([i for one in top for i, _ in one]).reshape(length, width),
        "top_logprobs": np.log([p for one in top for _, p in one] or [1.0])[: length * width],
    }
    arrays["top_logprobs"] = np.reshape(arrays["top_logprobs"], (length, width))
    given = {"prompt_id": f"p{number}", "prompt": "say a b", "prompt_token_ids": (0,), **fields}
    return StoredCompletion(
        completion=Completion(
            finish_reason=FinishReason(finish_reason),
            text="".join(texts) if text is None else text,
            **arrays,
        ),
        score=Score(reward=reward, **score),
        serial=number,
        sample=sample,
        pieces=list(texts),
        **given,
    )


SCORE = ("verdict", "parts", "error")


def make_store(root: Path, *parts: Sequence[StoredCompletion]) -> list[Path]:
    """completions/analysis of a run directory, one part after the other; the files."""
    folder = RunDirectory(root).completions_dir("analysis")
    for number, part in enumerate(parts):
        write_completions(part_file(folder, number), part)
    return part_files(folder)


def write_dynamics(
    root: Path,
    rows: Sequence[StoredCompletion],
    scored: Sequence[Sequence[Sequence[float]]],
    names: Sequence[str] | None = None,
) -> None:
    """What ``forkpoint dynamics`` leaves: completions by checkpoint.

    Args:
        scored: entropies by checkpoint and completion; log-probabilities are the same with a minus.
    """
    folder = RunDirectory(root).completions_dir("dynamics")
    for number, one in enumerate(scored):
        write_completions(
            folder / f"checkpoint_{number:05d}.parquet",
            (_scored(row, np.array(e)) for row, e in zip(rows, one, strict=True)),
        )
    write_result(root, make_dynamics(names or [f"step_{i}" for i in range(len(scored))]))


def _scored(row: StoredCompletion, entropies: np.ndarray) -> StoredCompletion:
    completion = replace(
        row.completion, entropies=entropies, logprobs=-entropies, top_ids=None, top_logprobs=None
    )
    return replace(row, completion=completion)


def make_dynamics(names: Sequence[str]) -> Dynamics:
    mean = Estimate(value=0.5, low=None, high=None, n=1)
    return Dynamics(
        source="sampled from the last",
        task="lab:game",
        temperature=1.0,
        seed=0,
        keep_fraction=0.2,
        tokens=10,
        completions=2,
        prompts=1,
        checkpoints=tuple(
            CheckpointEntropy(
                name=name,
                step=None,
                path=name,
                overlap_with_base=None,
                overlap_with_final=None,
                mean_entropy=mean,
                percentiles={},
            )
            for name in names
        ),
        change_by_bin=(),
    )


def make_pattern(**fields: Any) -> Pattern:
    """What is not given is made up."""
    given: dict[str, Any] = {
        "model": "lab:game",
        "source": "sampled",
        "task": "lab:game",
        "temperature": 1.0,
        "seed": 17,
        "tokens": 1200,
        "completions": 24,
        "prompts": 6,
        "keep_fraction": 0.2,
        "mean_entropy": 0.25,
        "share_below_0_01": 0.625,
        "entropy_threshold": 0.5,
        "kept_fraction": 0.2025,
        "entropy_share_of_top": 0.875,
        "percentiles": {q: (q / 100) ** 3 for q in range(0, 101, 5)},
        "histogram": {"edges": (0.0, 0.25, 0.5, 0.75, 1.0), "counts": (900, 150, 100, 50)},
        "by_position": (),
        "by_length": (),
        "by_correctness": (),
        "accuracy": None,
        "words_min_count": 100,
        "words_listed": 4,
        "lab": None,
        **fields,
    }
    return Pattern.model_validate(given)


WORDS = 20_000
ZIPF = np.cumsum(1 / np.arange(1, WORDS + 1)) / np.sum(1 / np.arange(1, WORDS + 1))
TEXTS = np.array([f" w{i}" for i in range(WORDS)], dtype=object)


def random_store(root: Path, *, groups: int, size: int, length: int) -> list[Path]:
    """Files as a large model leaves them: words by Zipf's law, most entropies small, five
    alternatives; ``groups`` prompts with ``size`` answers of ``length`` tokens, 8 prompts a part.

    The alternatives of a token are drawn at random, which deflates worse than real ones.
    """
    random = np.random.default_rng(0)
    folder = RunDirectory(root).completions_dir("analysis")
    for part, first in enumerate(range(0, groups, 8)):
        serials = range(first, min(first + 8, groups))
        rows = (
            random_completion(random, serial, s, length) for serial in serials for s in range(size)
        )
        write_completions(part_file(folder, part), rows)
    return part_files(folder)


def random_completion(
    random: np.random.Generator, serial: int, sample: int, length: int
) -> StoredCompletion:
    drawn = np.searchsorted(ZIPF, random.random((length, 5)))
    # 60 % of tokens nearly certain, as in the paper; the others exponential.
    entropies = random.exponential(np.where(random.random(length) < 0.6, 0.003, 0.8))
    chosen = np.exp(-entropies)[:, None]
    rest = -np.sort(-random.dirichlet(np.ones(5), length)[:, :4], axis=1) * (1 - chosen)
    mark = float(random.random() < 0.3)
    return StoredCompletion(
        completion=Completion(
            token_ids=drawn[:, 0],
            logprobs=-entropies,
            entropies=entropies,
            finish_reason=FinishReason.STOP,
            text="",
            top_ids=drawn,
            top_logprobs=np.log(np.maximum(np.c_[chosen, rest], 1e-9)),
        ),
        score=Score(reward=mark, verdict=mark),
        prompt_id=f"p{serial}",
        prompt=f"What is {serial} and {serial}? " * 8,
        serial=serial,
        sample=sample,
        prompt_token_ids=(0,),
        pieces=TEXTS[drawn[:, 0]].tolist(),
    )


def flat(paths: Sequence[Path]) -> Iterator[tuple[str, float]]:
    """(text, entropy) of all tokens of some files, read the slow way."""
    from forkpoint.runs.completions import read_completions

    for row in read_completions(paths):
        assert row.pieces is not None
        assert row.completion.entropies is not None
        yield from zip(row.pieces, row.completion.entropies.tolist(), strict=True)
