"""The same tokens under the base and its checkpoints, end to end on the laboratory's policy."""

import json
import shutil
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from forkpoint.runs.dynamics import ScoreRow, join_scores, read_scores, write_scores
from forkpoint.runs.tokens import CompletionRow

from forkpoint.analysis import dynamics as dynamics_module
from forkpoint.analysis.checkpoints import Checkpoint, checkpoints_of_run, named_checkpoints
from forkpoint.analysis.dynamics import DynamicsJob, measure_dynamics
from forkpoint.config import RunConfig
from forkpoint.entropy import reference_entropy, reference_logprob
from forkpoint.errors import Interrupted, RunError
from forkpoint.policy.load import load_model
from forkpoint.runs.completions import stream_completions
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
) -> tuple[Path, dict[str, Any], DynamicsJob]:
    """The same run with its dynamics measured."""
    root, config = trained
    job = DynamicsJob(config=config, checkpoints=checkpoints_of_run(root, "lab"))
    out = tmp_path_factory.mktemp("measured") / "out"
    return out, measure_dynamics(job, out), job


def completions(root: Path) -> list[CompletionRow]:
    folder = root / "analysis" / "dynamics" / "completions"
    return list(stream_completions(sorted(folder.glob("part_*"))))


def plainly(
    config: RunConfig, checkpoint: Checkpoint, rows: Sequence[CompletionRow]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Entropies and log-probabilities from all logits of one sequence at a time, in float64."""
    weights = None if checkpoint.path == "lab" else Path(checkpoint.path)
    model = load_model(config.model, weights=weights).model
    entropies, logprobs = [], []
    for row in rows:
        ids = torch.tensor([[*row.prompt_token_ids, *row.token_ids]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(row.prompt_token_ids) - 1 : -1].double()
        entropies.append(reference_entropy(logits, 1.0).numpy())
        logprobs.append(reference_logprob(logits, torch.tensor(row.token_ids), 1.0).numpy())
    return entropies, logprobs


def test_scores_are_every_checkpoints_own(
    measured: tuple[Path, dict[str, Any], DynamicsJob],
) -> None:
    root, summary, job = measured
    rows = completions(root)
    stored = pq.read_table(root / "analysis" / "dynamics_tokens.parquet").to_pylist()
    assert len(stored) == 3 * len(rows)
    for number, checkpoint in enumerate(job.checkpoints):
        mine = stored[number * len(rows) : (number + 1) * len(rows)]
        entropies, logprobs = plainly(job.config, checkpoint, rows)
        for row, line, entropy, logprob in zip(rows, mine, entropies, logprobs, strict=True):
            assert (line["prompt_id"], line["sample"]) == (row.prompt_id, row.sample)
            assert line["checkpoint"] == number
            assert line["entropies"] == pytest.approx(entropy.tolist(), abs=2e-5)
            assert line["logprobs"] == pytest.approx(logprob.tolist(), abs=2e-5)
    assert summary["tokens"] == sum(row.tokens for row in rows)
    assert summary["completions"] == len(rows)
    assert summary["prompts"] == len({row.prompt_id for row in rows})


def test_the_summary_is_what_a_plain_computation_gives(
    measured: tuple[Path, dict[str, Any], DynamicsJob],
) -> None:
    root, summary, _ = measured
    path = root / "analysis" / "dynamics_tokens.parquet"
    scores_C = [read_scores(path, "entropies", number) for number in range(3)]
    k = -(-2 * len(scores_C[0]) // 10)
    sets = [set(np.argsort(-scores, kind="stable")[:k].tolist()) for scores in scores_C]
    for name, reference in (("overlap_with_base", sets[0]), ("overlap_with_final", sets[2])):
        found = [interval["value"] for interval in summary[name]]
        assert found == pytest.approx([len(one & reference) / k for one in sets])
    assert 1.0 > summary["overlap_with_base"][1]["value"] > summary["overlap_with_base"][2]["value"]
    for interval in summary["overlap_with_base"]:
        assert interval["low"] <= interval["value"] <= interval["high"]
    means = [interval["value"] for interval in summary["mean_entropy"]]
    assert means == pytest.approx([float(s.astype(float).mean()) for s in scores_C])
    # the bins partition the tokens: their changes add up to the change of the mean
    bins = summary["change_by_bin"]
    assert sum(b["tokens"] for b in bins) == len(scores_C[0])
    total = sum(b["tokens"] * b["mean"] for b in bins) / len(scores_C[0])
    assert total == pytest.approx(means[2] - means[0])
    for q in ("0", "20", "80", "95", "100"):
        expected = [float(np.percentile(scores, int(q))) for scores in scores_C]
        assert summary["percentiles"][q] == pytest.approx(expected)
    assert [c["step"] for c in summary["checkpoints"]] == [0, 4, 12]
    assert summary["source"] == "sampled from step_00012"


def test_the_files_say_the_same(measured: tuple[Path, dict[str, Any], DynamicsJob]) -> None:
    root, summary, job = measured
    assert json.loads((root / "analysis" / "dynamics.json").read_text()) == summary
    config = json.loads((root / "config.json").read_text())
    assert config["evaluation"]["problems"] == job.config.evaluation.problems


def test_completions_come_from_the_final_policy(
    measured: tuple[Path, dict[str, Any], DynamicsJob],
) -> None:
    # the final policy gives its own samples a higher likelihood than the base does
    root = measured[0]
    path = root / "analysis" / "dynamics_tokens.parquet"
    base, final = (read_scores(path, "logprobs", number).mean() for number in (0, 2))
    assert final > base


def test_no_problem_counts_twice(measured: tuple[Path, dict[str, Any], DynamicsJob]) -> None:
    rows = completions(measured[0])
    keys = [(row.prompt_id, row.sample) for row in rows]
    assert len(set(keys)) == len(keys)
    assert {row.sample for row in rows} == {0, 1}


# ---- going on ------------------------------------------------------------------------------------


def test_an_interrupted_measurement_goes_on_where_it_stopped(
    measured: tuple[Path, dict[str, Any], DynamicsJob],
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
    scored = tmp_path / "analysis" / "dynamics" / "scored"
    assert [p.name for p in scored.iterdir()] == ["checkpoint_00000.parquet"]
    assert not (tmp_path / "analysis" / "dynamics.json").exists()
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
        DynamicsJob(config=config, checkpoints=checkpoints_of_run(root, "lab")), tmp_path
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
        DynamicsJob(config=config, checkpoints=checkpoints_of_run(root, "lab")), root
    )
    moved = root.rename(tmp_path / "elsewhere")
    job = DynamicsJob(config=config, checkpoints=checkpoints_of_run(moved, "lab"))
    again = measure_dynamics(job, moved)
    assert again["overlap_with_base"] == first["overlap_with_base"]
    # what only the statistics depend on may change
    narrow = DynamicsJob(config=config, checkpoints=job.checkpoints, keep_fraction=0.1)
    assert measure_dynamics(narrow, moved)["keep_fraction"] == 0.1
    other = config.model_copy(
        update={"evaluation": one.model_copy(update={"problems": 3})},
    )
    with pytest.raises(RunError, match=r"other settings \(problems: 2 -> 3\)"):
        measure_dynamics(DynamicsJob(config=other, checkpoints=job.checkpoints), moved)


def test_completions_that_exist_are_scored_as_they_are(
    measured: tuple[Path, dict[str, Any], DynamicsJob], tmp_path: Path
) -> None:
    root, summary, job = measured
    existing = root / "analysis" / "dynamics" / "completions"
    again = DynamicsJob(
        config=job.config, checkpoints=job.checkpoints, rollouts=existing / "part_00000.parquet"
    )
    found = measure_dynamics(again, tmp_path)
    assert found["overlap_with_base"] == summary["overlap_with_base"]
    assert found["percentiles"] == summary["percentiles"]
    assert found["source"].endswith("part_00000.parquet")
    assert completions(tmp_path) == completions(root)


# ---- checkpoints ---------------------------------------------------------------------------------


def test_checkpoints_of_a_run_are_in_the_order_of_training(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    names = [f"step_{step:05d}" for step in (100000, 4, 99999)]
    for name in (*names, ".step_00008.partial", ".step_00009.removed", "step_00010_best"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.safetensors").touch()
    (folder / "step_00012").mkdir()  # of a deletion that was killed
    (folder / "step_00012" / "manifest.json").touch()
    found = checkpoints_of_run(tmp_path, "lab")
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
    base, found = named_checkpoints("lab", [path])
    assert (base.step, base.path) == (0, "lab")
    assert (found.step, found.path) == (step, path)


# ---- the file of scores --------------------------------------------------------------------------


def test_scores_come_back_by_checkpoint(tmp_path: Path) -> None:
    def row(checkpoint: int, *entropies: float) -> ScoreRow:
        return ScoreRow(
            prompt_id="p",
            sample=0,
            checkpoint=checkpoint,
            entropies=list(entropies),
            logprobs=[-x for x in entropies],
        )

    many = 600  # more than one row group
    first, second = tmp_path / "0.parquet", tmp_path / "1.parquet"
    write_scores(first, (row(0, i, 0.5) for i in range(many)))
    write_scores(second, [row(1, 7.0), row(1), row(1, 8.0)])
    joined = tmp_path / "all.parquet"
    join_scores([first, second], joined)
    assert read_scores(joined, "entropies", 1).tolist() == [7.0, 8.0]
    assert read_scores(joined, "logprobs", 0).tolist() == [
        x for i in range(many) for x in (-i, -0.5)
    ]
    assert read_scores(joined, "entropies", 1).flags.writeable
    assert pq.ParquetFile(joined).num_row_groups > 2
