"""Which folders are checkpoints, which old ones go, and what a kill in between may leave."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from forkpoint.config.stages import OptimConfig
from forkpoint.errors import RunError
from forkpoint.runs.checkpoints import checkpoint_folders, finish_removals
from forkpoint.training.checkpoint import RunState, latest_checkpoint, save_checkpoint
from forkpoint.training.optimizer import Optimizer
from tests.conftest import tiny_model

USERS = ("step_00005_notes", "step_00010_best", "step_7", "step_000011", "step_", "best", ".step_3")
"""Names that look like a checkpoint's and are not."""


class NoTokenizer:
    def save_pretrained(self, folder: Path) -> None: ...


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Saves a checkpoint of a step."""
    model = tiny_model()
    optimizer = Optimizer(model, OptimConfig())

    def make(step: int, keep_last: int = 1) -> Path:
        state = RunState(step=step)
        return save_checkpoint(tmp_path, state, model, NoTokenizer(), optimizer, keep_last)

    return make


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_only_folders_that_a_run_names_are_checkpoints(tmp_path: Path) -> None:
    for name in ("step_00002", "step_99999", "step_100000", *USERS):
        (tmp_path / name).mkdir()
    (tmp_path / "step_00003").touch()
    assert list(checkpoint_folders(tmp_path)) == [2, 99999, 100000]


def test_the_newest_stay_by_number_and_the_users_folders_all(
    tmp_path: Path, save: Callable[..., Path]
) -> None:
    for name in USERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    for step in (99998, 99999, 100000, 100001):
        save(step, keep_last=2)
    assert names(tmp_path) == sorted([*USERS, "step_100000", "step_100001"])
    assert all((tmp_path / name / "notes.txt").read_text() == "mine" for name in USERS)
    found, skipped = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.state.step, skipped) == (100001, [])


def test_what_was_just_saved_outlives_a_later_one_that_is_broken(
    tmp_path: Path, save: Callable[..., Path]
) -> None:
    save(4, keep_last=2)
    (save(6, keep_last=2) / "model.safetensors").unlink()
    save(5)  # the run went on from step 4
    found, skipped = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.state.step == 5
    assert skipped == ["checkpoint step_00006 is not used: model.safetensors is missing"]
    save(6)
    assert names(tmp_path) == ["step_00006"]
    assert latest_checkpoint(tmp_path)[1] == []


def test_no_kill_while_pruning_leaves_half_a_checkpoint(
    tmp_path: Path, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion is broken off after each file in turn."""
    save(1)
    files = len(list((tmp_path / "step_00001").iterdir()))
    whole = tmp_path.with_name("whole")
    shutil.copytree(tmp_path, whole)
    for deleted in range(files):
        shutil.rmtree(tmp_path)
        shutil.copytree(whole, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", _killed_after(deleted))
            with pytest.raises(KeyboardInterrupt):
                save(2)
        for folder in checkpoint_folders(tmp_path).values():
            assert len(list(folder.iterdir())) == files
        found, skipped = latest_checkpoint(tmp_path)
        assert found is not None
        assert (found.state.step, skipped) == (2, [])
        finish_removals(tmp_path)
        assert names(tmp_path) == ["step_00002"]
    shutil.rmtree(whole)


def _killed_after(count: int) -> Callable[..., None]:
    def rmtree(folder: Path, ignore_errors: bool = False) -> None:
        for path in sorted(folder.iterdir())[:count] if folder.is_dir() else []:
            path.unlink()
        if folder.is_dir():
            raise KeyboardInterrupt

    return rmtree


def test_a_removal_that_was_killed_is_finished_by_the_next_of_the_same_name(
    tmp_path: Path, save: Callable[..., Path]
) -> None:
    save(1)
    (tmp_path / ".step_00001.removed").mkdir()
    (tmp_path / ".step_00001.removed" / "state.json").touch()
    save(2)
    assert names(tmp_path) == ["step_00002"]


def _killed_before(rename: Callable[..., Path], count: int) -> Callable[..., Path]:
    """A rename that works for ``count`` folders, and for files."""
    left = [count]

    def limited(path: Path, target: Path) -> Path:
        if path.is_dir():
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return rename(path, target)

    return limited


def test_no_kill_while_one_takes_anothers_place_loses_both(
    tmp_path: Path, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an evaluation that was interrupted: the same step is saved once more."""
    files = len(list(save(1).iterdir()))
    whole = tmp_path.with_name("whole")
    shutil.copytree(tmp_path, whole)
    renamed = Path.rename
    for allowed in range(3):
        shutil.rmtree(tmp_path)
        shutil.copytree(whole, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", _killed_before(renamed, allowed))
            if allowed < 2:
                with pytest.raises(KeyboardInterrupt):
                    save(1)
            else:
                save(1)
        finish_removals(tmp_path)
        assert names(tmp_path) == ["step_00001"]
        assert len(list((tmp_path / "step_00001").iterdir())) == files
        found, skipped = latest_checkpoint(tmp_path)
        assert found is not None
        assert (found.state.step, skipped) == (1, [])
    shutil.rmtree(whole)


def test_what_cannot_be_deleted_is_one_line(
    tmp_path: Path, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(13, "Permission denied")

    save(1)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(RunError, match=r"cannot delete the old checkpoint .*step_00001: .*denied"):
        save(2)
    with pytest.raises(RunError, match=r"cannot delete .*\.step_00001\.removed: .*denied"):
        finish_removals(tmp_path)
