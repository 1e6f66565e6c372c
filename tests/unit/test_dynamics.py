"""The same tokens under the base and its checkpoints, end to end on the laboratory's policy."""

import json
import shutil
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forkpoint.analysis import dynamics as dynamics_module
from forkpoint.analysis.checkpoints import Checkpoint, checkpoints_of_run, named_checkpoints
from forkpoint.analysis.dynamics import DynamicsJob, measure_dynamics
from forkpoint.config import RunConfig
from forkpoint.entropy import reference_entropy, reference_logprob
from forkpoint.errors import Interrupted, RunError
from forkpoint.policy.load import load_model
from forkpoint.runs.completions import StoredCompletion, read_columns, read_completions
from forkpoint.runs.results import Dynamics, read_result, result_path
from tests.checkpoint_runs import LocalScorer, run_with_checkpoints

STEPS = {4: 0.05, 12: 0.2}
PROBLEMS, SAMPLES = 6, 2


def small(config: RunConfig) -> RunConfig:
    evaluation = config.evaluation.model_copy(update={"problems": PROBLEMS, "samples": SAMPLES})
    return config.model_copy(update={"evaluation": evaluation})


@pytest.fixture(scope="module", autouse=True)
def _score_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forkpoint.sampling.build.build_scorer", LocalScorer)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig]:
    """A run with two checkpoints; not to be changed."""
    root = tmp_path_factory.mktemp("dynamics") / "run"
    return root, small(run_with_checkpoints(root, STEPS))


@pytest.fixture(scope="module")
def measured(
    trained: tuple[Path, RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Dynamics, DynamicsJob]:
    """The same run with its dynamics measured."""
    root, config = trained
    job = DynamicsJob(config=config, checkpoints=checkpoints_of_run(root, "lab:game"))
    out = tmp_path_factory.mktemp("measured") / "out"
    return out, measure_dynamics(job, out), job


def completions(root: Path, name: str = "sampled/part_*") -> list[StoredCompletion]:
    folder = root / "completions" / "dynamics"
    return list(read_completions(sorted(folder.glob(f"{name}.parquet"))))


def scores(root: Path, column: str) -> list[np.ndarray]:
    """Of each of the three checkpoints, all tokens end to end."""
    folder = root / "completions" / "dynamics"
    return [
        np.concatenate([c.flat(column) for c in read_columns([path], [column])])
        for path in sorted(folder.glob("checkpoint_*.parquet"))
    ]


def plainly(
    config: RunConfig, checkpoint: Checkpoint, rows: Sequence[StoredCompletion]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Entropies and log-probabilities from all logits of one sequence at a time, in float64."""
    weights = None if checkpoint.path == "lab:game" else Path(checkpoint.path)
    model = load_model(config.model, weights=weights).model
    entropies, logprobs = [], []
    for row in rows:
        assert row.prompt_token_ids is not None
        token_ids = row.completion.token_ids.tolist()
        ids = torch.tensor([[*map(int, row.prompt_token_ids), *token_ids]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(row.prompt_token_ids) - 1 : -1].double()
        entropies.append(reference_entropy(logits, 1.0).numpy())
        logprobs.append(reference_logprob(logits, torch.tensor(token_ids), 1.0).numpy())
    return entropies, logprobs


def test_scores_are_every_checkpoints_own(measured: tuple[Path, Dynamics, DynamicsJob]) -> None:
    root, found, job = measured
    rows = completions(root)
    for number, checkpoint in enumerate(job.checkpoints):
        stored = completions(root, f"checkpoint_{number:05d}")
        entropies, logprobs = plainly(job.config, checkpoint, rows)
        for row, mine, entropy, logprob in zip(rows, stored, entropies, logprobs, strict=True):
            assert (mine.prompt_id, mine.sample) == (row.prompt_id, row.sample)
            assert mine.completion.token_ids.tolist() == row.completion.token_ids.tolist()
            assert mine.completion.entropies == pytest.approx(entropy, abs=2e-5)
            assert mine.completion.logprobs == pytest.approx(logprob, abs=2e-5)
    assert found.tokens == sum(len(row.completion) for row in rows)
    assert found.completions == len(rows)
    assert found.prompts == len({row.prompt_id for row in rows})


def test_the_result_is_what_a_plain_computation_gives(
    measured: tuple[Path, Dynamics, DynamicsJob],
) -> None:
    root, found, _ = measured
    scores_C = scores(root, "entropies")
    k = -(-2 * len(scores_C[0]) // 10)
    sets = [set(np.argsort(-one, kind="stable")[:k].tolist()) for one in scores_C]
    checkpoints = found.checkpoints
    with_base = [c.overlap_with_base for c in checkpoints]
    with_final = [c.overlap_with_final for c in checkpoints]
    for column, reference in ((with_base, sets[0]), (with_final, sets[2])):
        values = [e.value for e in column if e is not None]
        assert values == pytest.approx([len(one & reference) / k for one in sets])
    intervals = [(e.low, e.value, e.high) for e in with_base if e is not None]
    assert 1.0 > intervals[1][1] > intervals[2][1]
    assert all(low <= value <= high for low, value, high in intervals)  # type: ignore[operator]
    means = [c.mean_entropy.value for c in checkpoints]
    assert means == pytest.approx([float(one.astype(float).mean()) for one in scores_C])
    # the bins partition the tokens: their changes add up to the change of the mean
    bins = found.change_by_bin
    assert sum(b.tokens for b in bins) == len(scores_C[0])
    total = sum(b.tokens * b.change.value for b in bins) / len(scores_C[0])
    assert total == pytest.approx(means[2] - means[0])
    for q in (0, 20, 80, 95, 100):
        expected = [float(np.percentile(one, q)) for one in scores_C]
        assert [c.percentiles[q].value for c in checkpoints] == pytest.approx(expected)
    assert [c.step for c in checkpoints] == [0, 4, 12]
    assert found.source == "sampled from step_00012"


def test_the_files_say_the_same(measured: tuple[Path, Dynamics, DynamicsJob]) -> None:
    root, found, job = measured
    assert read_result(result_path(root, Dynamics), Dynamics) == found
    config = json.loads((root / "config.json").read_text())
    assert config["evaluation"]["problems"] == job.config.evaluation.problems


def test_completions_come_from_the_final_policy(
    measured: tuple[Path, Dynamics, DynamicsJob],
) -> None:
    # the final policy gives its own samples a higher likelihood than the base does
    base, _, final = (one.mean() for one in scores(measured[0], "logprobs"))
    assert final > base


def test_no_problem_counts_twice(measured: tuple[Path, Dynamics, DynamicsJob]) -> None:
    rows = completions(measured[0])
    keys = [(row.prompt_id, row.sample) for row in rows]
    assert len(set(keys)) == len(keys)
    assert {row.sample for row in rows} == {0, 1}


# ---- going on ------------------------------------------------------------------------------------


def test_an_interrupted_measurement_goes_on_where_it_stopped(
    measured: tuple[Path, Dynamics, DynamicsJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, summary, job = measured
    loads: list[str] = []

    def load(config: Any, checkpoint: Checkpoint) -> Any:
        loads.append(checkpoint.name)
        return dynamics_load(config, checkpoint)

    dynamics_load = dynamics_module._load
    monkeypatch.setattr(dynamics_module, "_load", load)
    with pytest.raises(Interrupted):
        measure_dynamics(job, tmp_path, should_stop=lambda: len(loads) == 2)
    assert loads == ["base", "step_00004"]
    scored = (tmp_path / "completions" / "dynamics").glob("checkpoint_*")
    assert [p.name for p in scored] == ["checkpoint_00000.parquet"]
    assert not result_path(tmp_path, Dynamics).exists()
    assert measure_dynamics(job, tmp_path) == summary
    assert loads == ["base", "step_00004", "step_00004", "step_00012"]
    # once more: nothing is left to do
    assert measure_dynamics(job, tmp_path) == summary
    assert len(loads) == 4


def test_one_model_is_in_memory_at_a_time(
    trained: tuple[Path, RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, config = trained
    models: list[weakref.ref[Any]] = []
    dynamics_load = dynamics_module._load

    def load(config: Any, checkpoint: Checkpoint) -> Any:
        assert [model() for model in models] == [None] * len(models)
        loaded = dynamics_load(config, checkpoint)
        models.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(dynamics_module, "_load", load)
    one = config.evaluation.model_copy(update={"problems": 1, "samples": 1})
    config = config.model_copy(update={"evaluation": one})
    measure_dynamics(
        DynamicsJob(config=config, checkpoints=checkpoints_of_run(root, "lab:game")), tmp_path
    )
    assert len(models) == 3


def test_a_moved_run_goes_on_and_other_settings_are_refused(
    trained: tuple[Path, RunConfig], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(trained[0], root)
    config = trained[1]
    one = config.evaluation.model_copy(update={"problems": 2, "samples": 1})
    config = config.model_copy(update={"evaluation": one})
    first = measure_dynamics(
        DynamicsJob(config=config, checkpoints=checkpoints_of_run(root, "lab:game")), root
    )
    moved = root.rename(tmp_path / "elsewhere")
    job = DynamicsJob(config=config, checkpoints=checkpoints_of_run(moved, "lab:game"))
    again = measure_dynamics(job, moved)
    assert [c.overlap_with_base for c in again.checkpoints] == [
        c.overlap_with_base for c in first.checkpoints
    ]
    # what only the statistics depend on may change
    narrow = DynamicsJob(config=config, checkpoints=job.checkpoints, keep_fraction=0.1)
    assert measure_dynamics(narrow, moved).keep_fraction == 0.1
    other = config.model_copy(
        update={"evaluation": one.model_copy(update={"problems": 3})},
    )
    with pytest.raises(RunError, match=r"other settings \(problems: 2 -> 3\)"):
        measure_dynamics(DynamicsJob(config=other, checkpoints=job.checkpoints), moved)


def test_completions_that_exist_are_scored_as_they_are(
    measured: tuple[Path, Dynamics, DynamicsJob], tmp_path: Path
) -> None:
    root, summary, job = measured
    existing = root / "completions" / "dynamics" / "sampled"
    again = DynamicsJob(
        config=job.config, checkpoints=job.checkpoints, rollouts=existing / "part_00000.parquet"
    )
    found = measure_dynamics(again, tmp_path)
    assert found.checkpoints == summary.checkpoints
    assert found.source.endswith("part_00000.parquet")
    assert [row.completion.token_ids.tolist() for row in completions(tmp_path)] == [
        row.completion.token_ids.tolist() for row in completions(root)
    ]


def test_completions_that_were_changed_are_not_taken_for_the_old_ones(
    measured: tuple[Path, Dynamics, DynamicsJob], tmp_path: Path
) -> None:
    _, _, job = measured
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "pick n3"}\n')
    again = DynamicsJob(config=job.config, checkpoints=job.checkpoints, rollouts=path)
    measure_dynamics(again, tmp_path / "run")
    path.write_text('{"text": "pick n3 and n5"}\n')
    with pytest.raises(RunError, match="rollouts_bytes: 20 -> 27"):
        measure_dynamics(again, tmp_path / "run")


# ---- checkpoints ---------------------------------------------------------------------------------


def test_checkpoints_of_a_run_are_in_the_order_of_training(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    names = [f"step_{step:05d}" for step in (100000, 4, 99999)]
    for name in (*names, ".step_00008.partial", ".step_00009.removed", "step_00010_best"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.safetensors").touch()
    (folder / "step_00012").mkdir()  # of a deletion that was killed
    (folder / "step_00012" / "manifest.json").touch()
    found = checkpoints_of_run(tmp_path, "lab:game")
    assert [(c.name, c.step) for c in found] == [
        ("base", 0),
        ("step_00004", 4),
        ("step_99999", 99999),
        ("step_100000", 100000),
    ]


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("runs/a/checkpoints/step_00010", 10),
        ("verl/global_step_35", 35),
        ("trl/checkpoint-500", 500),
        ("Qwen/Qwen3-8B", None),
    ],
)
def test_steps_are_read_off_names(path: str, step: int | None) -> None:
    base, found = named_checkpoints("lab:game", [path])
    assert (base.step, base.path) == (0, "lab:game")
    assert (found.step, found.path) == (step, path)
