"""Checkpoints that cannot be compared, completions of another tokenizer: one clear line each."""

import json
from pathlib import Path

import numpy as np
import pytest

from forkpoint.analysis.checkpoints import (
    check_comparable,
    checkpoints_of_run,
    named_checkpoints,
)
from forkpoint.analysis.dynamics import DynamicsJob, measure_dynamics
from forkpoint.config import load_config
from forkpoint.errors import ConfigError, DataError, ForkpointError, ModelError, RunError
from forkpoint.lab import GameWorld
from forkpoint.lab.base_policy import build_tokenizer
from forkpoint.runs.completions import StoredCompletion, write_completions
from forkpoint.types import Completion, FinishReason
from tests.checkpoint_runs import SMALL, LocalScorer, disturbed_policy
from tests.conftest import tiny_model

CONFIG = load_config(None, SMALL)


def comparing(*paths: Path | str) -> DynamicsJob:
    return DynamicsJob(config=CONFIG, checkpoints=named_checkpoints("lab:game", [*map(str, paths)]))


def row_of(token_ids: list[int]) -> StoredCompletion:
    return StoredCompletion(
        completion=Completion(
            token_ids=np.array(token_ids),
            logprobs=np.zeros(len(token_ids)),
            entropies=None,
            finish_reason=FinishReason.LENGTH,
            text="pick n1",
        ),
        prompt_id="p",
        prompt="n1 n2 n3 goal n6 :",
        serial=0,
        sample=0,
        prompt_token_ids=(5, 6),
    )


def one_line(error: pytest.ExceptionInfo[ForkpointError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_run_without_checkpoints_says_how_to_keep_some(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        checkpoints_of_run(tmp_path, "lab:game")
    assert "--set checkpoint.every=4 --set checkpoint.keep_last=99" in one_line(caught)


def test_another_architecture(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "tiny")
    with pytest.raises(
        ModelError, match=r"tiny is not a checkpoint of lab:game: \w+ is "
    ) as caught:
        measure_dynamics(comparing(tmp_path / "tiny"), tmp_path / "out")
    one_line(caught)
    assert not (tmp_path / "out").exists()  # refused before anything is done


def test_another_vocabulary_of_the_same_size(tmp_path: Path) -> None:
    folder = disturbed_policy(tmp_path / "swapped", scale=0.0)
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = words["model"]["vocab"]
    vocabulary["n1"], vocabulary["n2"] = vocabulary["n2"], vocabulary["n1"]
    (folder / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    with pytest.raises(
        ModelError, match=r"tokenizer of .*swapped is not the one of lab:game"
    ) as caught:
        check_comparable(comparing(folder).checkpoints)
    one_line(caught)


def test_weights_without_a_tokenizer_are_the_bases(tmp_path: Path) -> None:
    folder = disturbed_policy(tmp_path / "bare", scale=0.0)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    check_comparable(comparing(folder).checkpoints)  # nothing is raised
    build_tokenizer(GameWorld()).save_pretrained(folder)
    check_comparable(comparing(folder).checkpoints)


@pytest.mark.parametrize("missing", ["./nowhere", "models/nowhere"])
def test_a_checkpoint_that_is_not_there(missing: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere") as caught:
        measure_dynamics(comparing(missing), tmp_path / "out")
    one_line(caught)


def test_weights_that_were_cut_off(tmp_path: Path) -> None:
    folder = disturbed_policy(tmp_path / "cut", scale=0.0)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    token_ids = build_tokenizer(GameWorld())("pick n1")["input_ids"]
    write_completions(tmp_path / "rows.parquet", [row_of(token_ids)])
    job = DynamicsJob(
        config=CONFIG,
        checkpoints=named_checkpoints("lab:game", [str(folder)]),
        rollouts=tmp_path / "rows.parquet",
    )
    with pytest.raises(ModelError, match="cut") as caught:
        measure_dynamics(job, tmp_path / "out")
    one_line(caught)
    # the base's scores are kept
    assert (tmp_path / "out/completions/dynamics/checkpoint_00000.parquet").exists()


@pytest.mark.parametrize("keep", [0.0, -0.2, 1.5])
def test_a_share_that_is_none(keep: float, tmp_path: Path) -> None:
    job = DynamicsJob(
        config=CONFIG, checkpoints=named_checkpoints("lab:game", ["lab:game"]), keep_fraction=keep
    )
    with pytest.raises(ConfigError, match="--keep-fraction"):
        measure_dynamics(job, tmp_path)


def test_completions_of_another_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_completions(path, [row_of([7, 8, 9])])
    job = DynamicsJob(
        config=CONFIG, checkpoints=named_checkpoints("lab:game", ["lab:game"]), rollouts=path
    )
    with pytest.raises(DataError, match="tokenizer does not match the stored ids") as caught:
        measure_dynamics(job, tmp_path / "out")
    one_line(caught)


def test_a_part_that_cannot_be_read_names_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forkpoint.sampling.build.build_scorer", LocalScorer)
    job = DynamicsJob(
        config=CONFIG.model_copy(
            update={
                "evaluation": CONFIG.evaluation.model_copy(update={"problems": 1, "samples": 1})
            }
        ),
        checkpoints=named_checkpoints("lab:game", ["lab:game"]),
    )
    measure_dynamics(job, tmp_path)
    part = tmp_path / "completions" / "dynamics" / "checkpoint_00001.parquet"
    part.write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"cannot read .*checkpoint_00001.parquet") as caught:
        measure_dynamics(job, tmp_path)
    one_line(caught)
