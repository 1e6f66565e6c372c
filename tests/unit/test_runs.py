"""A run's folder and who may write it, and files that are whole or not there."""

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from forkpoint.config import RunConfig, parse_config
from forkpoint.errors import RunError
from forkpoint.runs import MetricsLog, RunDirectory, read_metrics
from forkpoint.runs.atomic import write_atomically, write_json, write_text
from forkpoint.runs.directory import check_schema

FULL = Path("/dev/full")
"""Linux' disk that is always full: every write to it fails with ENOSPC."""
needs_full_disk = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")

# ---- the folder ----------------------------------------------------------------------------------


def config(**training: Any) -> str:
    return parse_config({"training": training}).model_dump_json()


def start(root: Path, settings: str | None = None, *, resume: bool = False) -> None:
    """A run that does one step."""
    with RunDirectory.open(root, settings or config(), resume=resume) as directory:
        MetricsLog(directory.metrics_jsonl).append({"step": 1})


def test_new_run_stores_its_configuration(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "new"
    with RunDirectory.open(root, config(steps=7), resume=False) as directory:
        assert directory.root == root
        stored = RunConfig.model_validate_json(directory.config_json.read_text())
    assert stored == parse_config({"training": {"steps": 7}})


def test_paths_are_the_documented_ones(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    found = {
        name: str(getattr(directory, name).relative_to(tmp_path))
        for name in vars(RunDirectory)
        if isinstance(vars(RunDirectory)[name], property)
    }
    assert found == {
        "config_json": "config.json",
        "env_json": "env.json",
        "recipe_json": "recipe.json",
        "metrics_jsonl": "metrics.jsonl",
        "checkpoints_dir": "checkpoints",
        "pieces_dir": "pieces",
        "tracking_dir": "tracking",
        "vocabulary_parquet": "completions/vocabulary.parquet",
        "words_parquet": "results/words.parquet",
    }
    assert directory.completions_dir("train") == tmp_path / "completions" / "train"


def test_run_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    start(tmp_path / "run")
    with pytest.raises(RunError, match=r"run exists already: go on with it by --resume, or choose"):
        start(tmp_path / "run")


@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
def test_files_of_the_users_are_not_written_over(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match="exists already"):
        start(tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert os.listdir(tmp_path) == [name]


def test_file_in_place_of_the_folder(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("mine")
    for root in (file, file / "below"):
        with pytest.raises(RunError, match=r"exists already|cannot write in"):
            start(root)
    assert file.read_text() == "mine"


def test_start_that_failed_can_be_repeated_with_other_settings(tmp_path: Path) -> None:
    class NoSuchModelError(Exception):
        pass

    def fail() -> None:
        with RunDirectory.open(tmp_path, config(seed=1), resume=False) as directory:
            directory.write_environment()
            raise NoSuchModelError

    with pytest.raises(NoSuchModelError):
        fail()
    start(tmp_path, config(seed=2))
    assert json.loads((tmp_path / "config.json").read_text())["training"]["seed"] == 2


def test_resume_goes_on_with_the_same_settings(tmp_path: Path) -> None:
    start(tmp_path)
    start(tmp_path, resume=True)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_resume_refuses_other_settings_by_name(tmp_path: Path) -> None:
    start(tmp_path, config(seed=1))
    with pytest.raises(RunError) as caught:
        start(tmp_path, config(seed=2, mini_batches=1), resume=True)
    assert str(caught.value) == (
        f"{tmp_path} was started with other settings (training.mini_batches: 4 -> 1, "
        "training.seed: 1 -> 2); a resumed run may change only checkpoint.every, "
        "checkpoint.keep_last, evaluation.benchmark_dir, evaluation.benchmarks, name, "
        "rollout.keep, scoring.workers, tracking.project, tracking.to, "
        "training.max_bad_steps, training.rank_timeout_minutes, training.steps, and rollout.vllm "
        "but its dtype"
    )
    assert json.loads((tmp_path / "config.json").read_text())["training"]["seed"] == 1


def test_resume_may_change_what_touches_no_step_already_made(tmp_path: Path) -> None:
    start(tmp_path)
    changed = {
        "name": "longer",
        "training": {"steps": 99},
        "checkpoint": {"every": 3, "keep_last": 9},
    }
    new = parse_config(changed).model_dump_json()
    start(tmp_path, new, resume=True)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(new)


def test_settings_that_an_older_version_did_not_know_count_as_unset(tmp_path: Path) -> None:
    start(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["training"].pop("threads") is None
    (tmp_path / "config.json").write_text(json.dumps(stored))
    start(tmp_path, resume=True)
    with pytest.raises(RunError, match=r"\(training.threads: None -> 2\)"):
        start(tmp_path, config(threads=2), resume=True)


def test_stored_configuration_that_is_broken(tmp_path: Path) -> None:
    start(tmp_path)
    (tmp_path / "config.json").write_text('{"name": ')
    with pytest.raises(RunError, match=r"cannot read .*config.json: "):
        start(tmp_path, resume=True)


HOLD = """
import sys, time
from pathlib import Path
from forkpoint.runs import RunDirectory
with RunDirectory.open(Path(sys.argv[1]), "{}", resume=False):
    print("held", flush=True)
    time.sleep(600)
"""


def test_lock_is_held_while_its_process_lives_and_no_longer(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for resume in (False, True):
            with pytest.raises(RunError) as caught:
                start(tmp_path, "{}", resume=resume)
            assert str(caught.value) == f"{tmp_path} is being written by process {holder.pid}"
    finally:
        holder.kill()
        holder.communicate()
    start(tmp_path, "{}", resume=True)  # killed without a word, and the lock went with it


def test_lock_ends_with_the_block_even_by_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            pytest.raises(ZeroDivisionError),
            RunDirectory.open(tmp_path, config(), resume=True),
        ):
            raise ZeroDivisionError


@pytest.mark.parametrize("target", ["notes.txt", "nothing.txt"])
def test_lock_that_leads_elsewhere(tmp_path: Path, target: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    root = tmp_path / "run"
    root.mkdir()
    (root / ".lock").symlink_to(tmp_path / target)
    for claim in (
        lambda: RunDirectory.claim(root),
        lambda: RunDirectory.open(root, config(), resume=True),
    ):
        with pytest.raises(RunError, match=r"run/\.lock is a symbolic link: delete it"), claim():
            pass
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["notes.txt"]


def test_no_room_for_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunError, match=f"cannot lock {tmp_path}: "):
        start(tmp_path)


# ---- files that are whole ------------------------------------------------------------------------


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def half(partial: Path) -> None:
        partial.write_text("half of")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=f"cannot write {path}: .*No space left on device"):
        write_atomically(path, half)
    assert json.loads(path.read_text()) == {"a": 1}
    assert leftovers(tmp_path) == ["a.json"]


def test_interrupted_write_leaves_no_half_file(tmp_path: Path) -> None:
    def half(partial: Path) -> None:
        partial.write_text("half of")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.json", half)
    assert leftovers(tmp_path) == []


@needs_full_disk
def test_disk_that_is_full(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    (tmp_path / ".a.txt.partial").symlink_to(FULL)
    with pytest.raises(RunError, match=f"cannot write {path}: .*No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == ["a.txt"]


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "eval").write_text("mine")
    with pytest.raises(RunError, match="cannot write"):
        write_text(tmp_path / "eval" / "a.txt", "text")


def test_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "text")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "text"


def test_json_of_any_text_and_no_bare_nan(tmp_path: Path) -> None:
    # an argument of the command line that is not UTF-8 arrives as half a surrogate pair
    value = {"command": ["--name", "größer", "\udcff"]}
    write_json(tmp_path / "env.json", value)
    assert json.loads((tmp_path / "env.json").read_text(encoding="utf-8")) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": math.nan})


# ---- versions of the folder ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "use", [RunDirectory.claim, partial(RunDirectory.open, config="{}", resume=True)]
)
@pytest.mark.parametrize(
    ("files", "version"),
    [
        ({"env.json": '{"command": []}', "config.json": "{}"}, 1),
        ({"rollouts/step_00001.parquet": "", "config.json": "{}"}, 1),
        ({"analysis/tokens/part_00000.parquet": ""}, 1),
        ({"env.json": '{"schema_version": 3}'}, 3),
    ],
)
def test_a_folder_of_another_version_is_refused_and_left_alone(
    tmp_path: Path, use: Any, files: dict[str, str], version: int
) -> None:
    for name, text in files.items():
        write_text(tmp_path / name, text)
    with pytest.raises(RunError) as caught, use(tmp_path):
        pass
    assert str(caught.value) == (
        f"{tmp_path} is a run directory of schema version {version}, and this forkpoint reads and "
        "writes version 2: choose another folder, or use the version of forkpoint that made it"
    )
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == {*files}


def test_a_folder_says_of_which_version_it_is(tmp_path: Path) -> None:
    with RunDirectory.claim(tmp_path) as directory:
        directory.describe('{"a": 1}')
    check_schema(tmp_path)
    assert json.loads(directory.env_json.read_text())["schema_version"] == 2
    with RunDirectory.claim(tmp_path) as directory:
        directory.describe("{}")  # a run's own files stay
    assert json.loads(directory.config_json.read_text()) == {"a": 1}
    directory.env_json.write_text("{")
    with pytest.raises(RunError, match=r"cannot read .*env.json"):
        check_schema(tmp_path)


# ---- claiming a directory ------------------------------------------------------------------------


def test_claim_makes_the_folder_and_leaves_its_configuration_alone(tmp_path: Path) -> None:
    root = tmp_path / "new" / "run"
    with RunDirectory.claim(root) as directory:
        assert directory.root == root
        assert not directory.config_json.exists()
    directory.config_json.write_text('{"a": 1}')
    with RunDirectory.claim(root):
        pass
    assert directory.config_json.read_text() == '{"a": 1}'


def test_a_directory_is_claimed_once(tmp_path: Path) -> None:
    with (
        RunDirectory.claim(tmp_path),
        pytest.raises(RunError, match="is being written by process"),
        RunDirectory.claim(tmp_path),
    ):
        pass
    with RunDirectory.claim(tmp_path):  # free again
        pass


def test_claim_and_training_exclude_each_other(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with (
        RunDirectory.open(root, "{}", resume=False),
        pytest.raises(RunError, match="is being written by process"),
        RunDirectory.claim(root),
    ):
        pass
