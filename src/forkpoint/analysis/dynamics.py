"""The same tokens under the base and every checkpoint: what training does to their entropies.

As in the paper (section 4): completions are sampled from the final policy once; the base and each
checkpoint re-score those very tokens. One model is in memory at a time, and each leaves a file of
its own, so that an interrupted analysis goes on where it stopped.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from forkpoint.analysis.checkpoints import Checkpoint, check_comparable
from forkpoint.analysis.held_out import sample_held_out
from forkpoint.analysis.pattern import (
    PERCENTILES,
    TokenIndex,
    change_by_bin,
    overlaps,
    percentiles,
    token_index,
    top_tokens,
)
from forkpoint.analysis.resampling import Interval, ratio_intervals
from forkpoint.analysis.run_files import claim_settings, write_run_files
from forkpoint.analysis.sources import Columns, CompletionFile
from forkpoint.analysis.vocabulary import ensure_vocabulary
from forkpoint.config import RunConfig
from forkpoint.errors import ConfigError, DataError, Interrupted, ModelError
from forkpoint.policy.load import LoadedModel, load_model, model_source
from forkpoint.policy.teacher import score_completions
from forkpoint.runs import RunDirectory
from forkpoint.runs.atomic import write_json, write_text
from forkpoint.runs.completions import stream_completions, write_completions
from forkpoint.runs.dynamics import ScoreRow, join_scores, read_scores, write_scores
from forkpoint.sampling import build_sampling

SCHEMA = 1

PART_COMPLETIONS = 256
"""Completions of a part that is read from a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicsJob:
    """What ``measure_dynamics`` is to do."""

    config: RunConfig
    """Its model is the base; task, rollout and evaluation say how completions are sampled."""
    checkpoints: Sequence[Checkpoint]
    """The base first, the final policy last."""
    rollouts: Path | None = None
    """Completions that are there already, of any shape ``analysis.sources`` reads. None: sampled
    from the final policy."""
    keep_fraction: float = 0.2
    """The share of tokens of highest entropy whose overlap is measured."""

    @property
    def source(self) -> str:
        """For people and files."""
        if self.rollouts is not None:
            return str(self.rollouts)
        return f"sampled from {self.checkpoints[-1].name}"


def measure_dynamics(
    job: DynamicsJob,
    root: Path,
    should_stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write analysis/dynamics.json and analysis/dynamics_tokens.parquet in ``root``.

    Args:
        note: gets a line about each thing done.

    Returns:
        The contents of dynamics.json; docs/dynamics.md is the schema.

    Raises:
        ConfigError: ``keep_fraction`` is not a share.
        ModelError: a checkpoint cannot be loaded, or is of another model (before anything is done).
        DataError: there is nothing to score, or its tokens are not the model's.
        Interrupted: ``should_stop()`` turned true; what was finished stays.
    """
    if not 0 < job.keep_fraction <= 1:
        raise ConfigError(f"--keep-fraction {job.keep_fraction:g} is not in (0, 1]")
    check_comparable(job.checkpoints)
    with RunDirectory.claim(root) as directory:
        folder = directory.analysis_dir / "dynamics"
        claim_settings(folder, _settings(job, root))
        paths = _completions(job, folder / "completions", should_stop, note)
        write_run_files(directory, job.config)
        scored = _score_all(job, paths, folder / "scored", should_stop, note)
        join_scores(scored, directory.analysis_dir / "dynamics_tokens.parquet")
        summary = _summary(job, paths, scored)
        write_json(directory.analysis_dir / "dynamics.json", summary)
    return summary


def _settings(job: DynamicsJob, root: Path) -> dict[str, Any]:
    """What decides the completions and their scores."""
    config = job.config
    sampled = job.rollouts is None
    return {
        "schema": SCHEMA,
        "checkpoints": [_relative(c.path, root) for c in job.checkpoints],
        "rollouts": None if job.rollouts is None else _relative(str(job.rollouts), root),
        "temperature": config.rollout.temperature,
        "compute_dtype": config.model.compute_dtype,
        "task": config.task.model_dump(mode="json") if sampled else None,
        "problems": config.evaluation.problems if sampled else None,
        "samples": config.evaluation.samples if sampled else None,
        "seed": config.evaluation.seed if sampled else None,
        "max_new_tokens": config.rollout.max_new_tokens if sampled else None,
    }


def _relative(path: str, root: Path) -> str:
    """What is inside the run directory is named from there, so that the folder can be moved."""
    inside = Path(path).resolve().is_relative_to(root.resolve())
    return str(Path(path).resolve().relative_to(root.resolve())) if inside else path


# ---- completions --------------------------------------------------------------------------------


def _completions(
    job: DynamicsJob, folder: Path, should_stop: Callable[[], bool], note: Callable[[str], None]
) -> list[Path]:
    """Files of completions, sampled from the final policy unless the job names some."""
    whole = folder / "whole"  # the mark that no part is missing
    if whole.exists():
        return sorted(folder.glob("part_*.parquet"))
    if job.rollouts is None:
        note(f"sampling from {job.checkpoints[-1].name}")
        last = load_model(job.config.model, weights=_weights(job.checkpoints[-1]))
        with closing(build_sampling(job.config, last)) as parts:
            ensure_vocabulary(folder.parent.parent, parts.loaded.tokenizer)
            paths = sample_held_out(parts, job.config, folder, should_stop)
    else:
        note(f"reading {job.rollouts}")
        loaded = load_model(job.config.model)
        ensure_vocabulary(folder.parent.parent, loaded.tokenizer)
        source = CompletionFile(job.rollouts, Columns(), loaded)
        paths = _copy(source, folder)
        for line in source.notes():
            note(line)
    write_text(whole, "")
    return paths


def _copy(source: CompletionFile, folder: Path) -> list[Path]:
    """The file's completions in this model's tokens."""
    rows, paths = iter(source), []
    while part := list(islice(rows, PART_COMPLETIONS)):
        paths.append(folder / f"part_{len(paths):05d}.parquet")
        write_completions(paths[-1], part)
    return paths


def _score_all(
    job: DynamicsJob,
    paths: Sequence[Path],
    folder: Path,
    should_stop: Callable[[], bool],
    note: Callable[[str], None],
) -> list[Path]:
    """A file of scores for each checkpoint; those that are there already are kept."""
    scored = []
    for number, checkpoint in enumerate(job.checkpoints):
        path = folder / f"checkpoint_{number:05d}.parquet"
        if not path.exists():
            note(f"scoring with {checkpoint.name} ({number + 1} of {len(job.checkpoints)})")
            # no name is left for the model: it must be gone before the next one is loaded
            write_scores(
                path, _scores(job.config, _load(job.config, checkpoint), number, paths, should_stop)
            )
        scored.append(path)
    return scored


def _load(config: RunConfig, checkpoint: Checkpoint) -> LoadedModel:
    try:
        return load_model(config.model, weights=_weights(checkpoint))
    except ModelError as error:
        raise ModelError(f"checkpoint {checkpoint.path}: {error}") from error


def _weights(checkpoint: Checkpoint) -> Path:
    return Path(model_source(checkpoint.path))


def _scores(
    config: RunConfig,
    loaded: LoadedModel,
    number: int,
    paths: Sequence[Path],
    should_stop: Callable[[], bool],
) -> Iterator[ScoreRow]:
    """One checkpoint's rows, in the order of the completions."""
    scores = score_completions(
        loaded.model,
        ((r.prompt_token_ids, r.token_ids) for r in stream_completions(paths)),
        temperature=config.rollout.temperature,
        top_k=1,
        max_tokens=config.training.micro_batch_tokens,
    )
    for row, score in zip(stream_completions(paths), scores, strict=True):
        if should_stop():
            raise Interrupted("stopped while scoring")
        yield ScoreRow(
            prompt_id=row.prompt_id,
            sample=row.sample,
            checkpoint=number,
            entropies=score.entropies_T,
            logprobs=score.logprobs_T,
        )


# ---- statistics ---------------------------------------------------------------------------------


def _summary(job: DynamicsJob, paths: Sequence[Path], scored: Sequence[Path]) -> dict[str, Any]:
    ids, lengths = zip(*((r.prompt_id, r.tokens) for r in stream_completions(paths)), strict=True)
    index = token_index(ids, lengths)
    if not len(index.prompt_T):
        raise DataError(f"no tokens to compare: every completion ({job.source}) is empty")
    config, seed = job.config, job.config.evaluation.seed
    tops_CT, percentiles_C, means_C = [], [], []
    for number, path in enumerate(scored):
        entropies_T = read_scores(path, "entropies", number)
        tops_CT.append(top_tokens(entropies_T, index, job.keep_fraction))
        percentiles_C.append(percentiles(entropies_T, index, seed=seed))
        means_C.append(_mean(entropies_T, index, seed))
    base_T, final_T = (read_scores(scored[n], "entropies", n) for n in (0, len(scored) - 1))
    changes = change_by_bin(base_T, final_T, index, seed=seed)
    return {
        "schema": SCHEMA,
        "checkpoints": [{"name": c.name, "step": c.step, "path": c.path} for c in job.checkpoints],
        "source": job.source,
        "task": config.task.type if job.rollouts is None else None,
        "temperature": config.rollout.temperature,
        "seed": seed,
        "keep_fraction": job.keep_fraction,
        "tokens": len(base_T),
        "completions": len(lengths),
        "prompts": index.num_prompts,
        "overlap_with_base": _dicts(overlaps(tops_CT, tops_CT[0], index, seed=seed)),
        "overlap_with_final": _dicts(overlaps(tops_CT, tops_CT[-1], index, seed=seed)),
        "mean_entropy": _dicts(means_C),
        "change_by_bin": [
            {
                "from_percentile": c.from_percentile,
                "to_percentile": c.to_percentile,
                "from_nats": c.from_nats,
                "to_nats": c.to_nats,
                "tokens": c.tokens,
                "mean": c.change.value,
                "low": c.change.low,
                "high": c.change.high,
            }
            for c in changes
        ],
        "percentiles": {
            str(q): [found[k].value for found in percentiles_C] for k, q in enumerate(PERCENTILES)
        },
        "percentile_intervals": {
            str(q): _dicts([found[k] for found in percentiles_C]) for k, q in enumerate(PERCENTILES)
        },
    }


def _mean(entropies_T: np.ndarray, index: TokenIndex, seed: int) -> Interval | None:
    sums_PK = index.sums(entropies_T)[:, None]
    tokens_PK = index.sums(np.ones(len(entropies_T)))[:, None]
    return ratio_intervals(sums_PK, tokens_PK, seed=seed, purpose="mean entropy")[0]


def _dicts(intervals: Sequence[Interval | None]) -> list[dict[str, float | None] | None]:
    return [None if i is None else i.as_dict() for i in intervals]
