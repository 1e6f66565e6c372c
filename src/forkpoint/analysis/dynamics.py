"""The same tokens under the base and every checkpoint: what training does to their entropies.

As in the paper (section 4): completions are sampled from the final policy once; the base and each
checkpoint re-score those very tokens. One model is in memory at a time, and each leaves a file of
its own, so that an interrupted analysis goes on where it stopped.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forkpoint.analysis.checkpoints import Checkpoint, check_comparable
from forkpoint.analysis.pattern import (
    PERCENTILES,
    TokenIndex,
    change_by_bin,
    overlaps,
    percentiles,
    token_index,
    top_tokens,
)
from forkpoint.analysis.resampling import ratio_intervals
from forkpoint.analysis.rescoring import rescored
from forkpoint.analysis.sources import Columns, CompletionFile
from forkpoint.config import RunConfig
from forkpoint.errors import ConfigError, DataError, ModelError
from forkpoint.evaluation.held_out import sample_held_out
from forkpoint.policy.load import LoadedModel, load_model, model_source
from forkpoint.runs import RunDirectory
from forkpoint.runs.atomic import write_text
from forkpoint.runs.completions import (
    part_file,
    part_files,
    read_columns,
    read_completions,
    write_completions,
)
from forkpoint.runs.results import CheckpointEntropy, Dynamics, Estimate, write_result
from forkpoint.runs.resume import Pieces
from forkpoint.runs.rows import bytes_of
from forkpoint.sampling import build_sampling


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
) -> Dynamics:
    """Write results/dynamics.json and completions/dynamics/ in ``root``.

    Args:
        note: gets a line about each thing done.

    Returns:
        The contents of dynamics.json; see docs/dynamics.md.

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
        pieces = Pieces.open(directory.completions_dir("dynamics"), _decisive(job, root))
        paths = _completions(job, pieces, should_stop, note)
        directory.describe(job.config.model_dump_json(indent=2))
        result = _result(job, paths, _score_all(job, paths, pieces, should_stop, note))
        write_result(root, result)
    return result


def _decisive(job: DynamicsJob, root: Path) -> dict[str, Any]:
    """What decides the completions and their scores."""
    config = job.config
    sampled = job.rollouts is None
    return {
        "checkpoints": [_relative(c.path, root) for c in job.checkpoints],
        "rollouts": None if job.rollouts is None else _relative(str(job.rollouts), root),
        "rollouts_bytes": bytes_of(job.rollouts),
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
    job: DynamicsJob, pieces: Pieces, should_stop: Callable[[], bool], note: Callable[[str], None]
) -> list[Path]:
    """Files of completions, sampled from the final policy unless the job names some."""
    folder = pieces.path("sampled")
    whole = folder / "whole"  # the mark that no part is missing
    if whole.exists():
        return part_files(folder)
    if job.rollouts is None:
        note(f"sampling from {job.checkpoints[-1].name}")
        last = load_model(job.config.model, weights=_weights(job.checkpoints[-1]))
        with closing(build_sampling(job.config, last)) as parts:
            paths = sample_held_out(parts, job.config, folder, should_stop)
    else:
        note(f"reading {job.rollouts}")
        source = CompletionFile(job.rollouts, Columns(), load_model(job.config.model))
        paths = [part_file(folder, 0)]
        write_completions(paths[0], source)
        for line in source.notes():
            note(line)
    write_text(whole, "")
    return paths


def _score_all(
    job: DynamicsJob,
    paths: Sequence[Path],
    pieces: Pieces,
    should_stop: Callable[[], bool],
    note: Callable[[str], None],
) -> list[Path]:
    """The completions as each checkpoint sees them; files that are there already are kept."""
    scored = []
    for number, checkpoint in enumerate(job.checkpoints):
        key = f"checkpoint_{number:05d}.parquet"
        if not pieces.done(key):
            note(f"scoring with {checkpoint.name} ({number + 1} of {len(job.checkpoints)})")
            # no name is left for the model: it must be gone before the next one is loaded
            rows = rescored(
                _load(job.config, checkpoint),
                read_completions(paths),
                job.config,
                top_k=0,
                should_stop=should_stop,
            )
            write_completions(pieces.path(key), rows)
        scored.append(pieces.path(key))
    return scored


def _load(config: RunConfig, checkpoint: Checkpoint) -> LoadedModel:
    try:
        return load_model(config.model, weights=_weights(checkpoint))
    except ModelError as error:
        raise ModelError(f"checkpoint {checkpoint.path}: {error}") from error


def _weights(checkpoint: Checkpoint) -> Path:
    return Path(model_source(checkpoint.path))


# ---- statistics ---------------------------------------------------------------------------------


def _result(job: DynamicsJob, paths: Sequence[Path], scored: Sequence[Path]) -> Dynamics:
    ids, lengths = [], []
    for columns in read_columns(paths, ["prompt_id", "token_ids"]):
        ids += columns.values("prompt_id")
        lengths += columns.lengths().tolist()
    index = token_index(ids, lengths)
    if not len(index.prompt_T):
        raise DataError(f"no tokens to compare: every completion ({job.source}) is empty")
    config, seed = job.config, job.config.evaluation.seed
    tops_CT = [top_tokens(_entropies(path), index, job.keep_fraction) for path in scored]
    with_base = overlaps(tops_CT, tops_CT[0], index, seed=seed)
    with_final = overlaps(tops_CT, tops_CT[-1], index, seed=seed)
    base_T, final_T = (_entropies(scored[n]) for n in (0, -1))
    return Dynamics(
        source=job.source,
        task=config.task_name if job.rollouts is None else None,
        temperature=config.rollout.temperature,
        seed=seed,
        keep_fraction=job.keep_fraction,
        tokens=len(base_T),
        completions=len(lengths),
        prompts=index.num_prompts,
        checkpoints=tuple(
            _checkpoint(checkpoint, base, final, _entropies(path), index, seed)
            for checkpoint, base, final, path in zip(
                job.checkpoints, with_base, with_final, scored, strict=True
            )
        ),
        change_by_bin=tuple(change_by_bin(base_T, final_T, index, seed=seed)),
    )


def _checkpoint(
    checkpoint: Checkpoint,
    with_base: Estimate | None,
    with_final: Estimate | None,
    entropies_T: np.ndarray,
    index: TokenIndex,
    seed: int,
) -> CheckpointEntropy:
    sums_PK = index.sums(entropies_T)[:, None]
    tokens_PK = index.sums(np.ones(len(entropies_T)))[:, None]
    (mean,) = ratio_intervals(sums_PK, tokens_PK, seed=seed, purpose="mean entropy")
    assert mean is not None  # there are tokens
    return CheckpointEntropy(
        name=checkpoint.name,
        step=checkpoint.step,
        path=checkpoint.path,
        overlap_with_base=with_base,
        overlap_with_final=with_final,
        mean_entropy=mean,
        percentiles=dict(zip(PERCENTILES, percentiles(entropies_T, index, seed=seed), strict=True)),
    )


def _entropies(path: Path) -> np.ndarray:
    """One checkpoint's entropies of all completions, end to end: float32 [T]."""
    return np.concatenate([c.flat("entropies") for c in read_columns([path], ["entropies"])])
