"""The folder of one run: where its files are, and who may write them."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkpoint.dotted import GIVEN, same_path
from forkpoint.environment import environment
from forkpoint.errors import RunError
from forkpoint.runs.atomic import read_object, write_json, write_text
from forkpoint.runs.resume import changed_settings, listed

SCHEMA_VERSION = 2
"""Of run directories, in env.json; the first version wrote none."""

FIRST_VERSION = ("rollouts", "eval", "analysis/tokens")
"""Folders that only the first version made."""

MAY_CHANGE = frozenset(
    {
        *("name", "training.steps", "checkpoint.every", "checkpoint.keep_last"),
        *("scoring.workers", "rollout.keep"),
        *("training.rank_timeout_minutes", "training.max_bad_steps"),
        *("tracking.to", "tracking.project"),
        *("evaluation.benchmarks", "evaluation.benchmark_dir"),
    }
)
"""What a resumed run may set anew: nothing here touches the steps already made. Beside these, where
its servers are and how they are reached."""

SETTINGS = frozenset({".lock", "config.json", "env.json"})
"""What is there before a run has done anything."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The paths inside a run directory."""

    root: Path

    @property
    def config_json(self) -> Path:
        return self.root / "config.json"

    @property
    def env_json(self) -> Path:
        return self.root / "env.json"

    @property
    def recipe_json(self) -> Path:
        """Of an ablation's folder: its variants, seeds and settings."""
        return self.root / "recipe.json"

    @property
    def metrics_jsonl(self) -> Path:
        return self.root / "metrics.jsonl"

    def completions_dir(self, kind: str) -> Path:
        """Where completions of a kind are: ``train``, ``eval``, ``analysis``, ``dynamics``."""
        return self.root / "completions" / kind

    @property
    def vocabulary_parquet(self) -> Path:
        """The text of every token id of the model that was analysed."""
        return self.root / "completions" / "vocabulary.parquet"

    @property
    def words_parquet(self) -> Path:
        """Words by their mean entropy: beside results/pattern.json."""
        return self.root / "results" / "words.parquet"

    @property
    def pieces_dir(self) -> Path:
        """Finished pieces of measurements: ``runs.resume``."""
        return self.root / "pieces"

    @property
    def tracking_dir(self) -> Path:
        """What trackers keep of the run on this machine."""
        return self.root / "tracking"

    @property
    def checkpoints_dir(self) -> Path:
        return self.root / "checkpoints"

    @staticmethod
    @contextmanager
    def open(root: Path, config: str, *, resume: bool) -> "Iterator[RunDirectory]":
        """Claim ``root`` for writing and store the resolved configuration.

        Args:
            config: JSON.
            resume: go on with the run that is there; without it the folder must be new, empty, or
                left by a start that failed.

        Raises:
            RunError: the folder holds a run (and ``resume`` is false) or one of another version,
                another process is writing it, its configuration differs in a key that decides
                results, or the disk is full.
        """
        directory = RunDirectory(root)
        if not resume and root.exists() and (not root.is_dir() or _was_used(root)):
            raise RunError(
                f"{root} exists already: go on with it by --resume, or choose another --run-dir"
            )
        check_schema(root)
        lock = _open_lock(root)
        try:
            _claim(lock, root)
            if resume and directory.config_json.exists():
                _check_same_run(directory.config_json, json.loads(config))
            write_text(directory.config_json, config + "\n")
            yield directory
        finally:
            os.close(lock)  # the kernel drops the lock with it, or when the process is killed

    @staticmethod
    @contextmanager
    def claim(root: Path) -> "Iterator[RunDirectory]":
        """Take ``root`` for writing as it is, made if it is not there; config.json is left alone.

        For commands that add files of their own to a run (``forkpoint analyze``).

        Raises:
            RunError: it is of another version, another process is writing it, or it cannot be
                written.
        """
        check_schema(root)
        lock = _open_lock(root)
        try:
            _claim(lock, root)
            yield RunDirectory(root)
        finally:
            os.close(lock)

    def describe(self, config: str) -> None:
        """config.json and env.json, unless the folder is a run's and has them already.

        Args:
            config: JSON.
        """
        if not self.config_json.exists():
            write_text(self.config_json, config + "\n")
            self.write_environment()

    def write_environment(self) -> None:
        """env.json: what the run is made with, and the version of its folder."""
        write_json(self.env_json, {"schema_version": SCHEMA_VERSION, **environment()})


def check_schema(root: Path) -> None:
    """Refuse a folder whose files have names and meanings of another version.

    Raises:
        RunError: saying which version made it, and what to do.
    """
    if stored := read_object(root / "env.json"):
        version = stored.get("schema_version", 1)
    else:
        version = 1 if any((root / name).is_dir() for name in FIRST_VERSION) else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise RunError(
            f"{root} is a run directory of schema version {version}, and this forkpoint reads and "
            f"writes version {SCHEMA_VERSION}: choose another folder, or use the version of "
            "forkpoint that made it"
        )


def _open_lock(root: Path) -> int:
    try:
        root.mkdir(parents=True, exist_ok=True)
        # no symbolic link: whatever it leads to would be emptied
        return os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        if (root / ".lock").is_symlink():
            raise RunError(f"{root / '.lock'} is a symbolic link: delete it") from error
        raise RunError(f"cannot write in {root}: {error}") from error


def _was_used(root: Path) -> bool:
    """A start that failed (no such model, say) leaves settings and a lock, and can be repeated."""
    names = {path.name for path in root.iterdir()}
    return bool(names) and (not names <= SETTINGS or ".lock" not in names)


def _claim(lock: int, root: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip()
        raise RunError(f"{root} is being written by process {owner or 'unknown'}") from None
    except OSError as error:  # no locks on this file system, or the disk is full
        raise RunError(f"cannot lock {root}: {error}") from error


def _check_same_run(path: Path, new: dict[str, Any]) -> None:
    changed = changed_settings(path, new).items()
    forbidden = {
        key: (old, given)
        for key, (old, given) in changed
        if not _may_change(key) and same_path(old) != same_path(given)
    }
    if forbidden:
        ours = any(f"{GIVEN}:" in str(old) for old, _ in forbidden.values())
        again = "what was given in Python must be given again; " if ours else ""
        raise RunError(
            f"{path.parent} was started with other settings ({listed(forbidden)}); {again}a "
            f"resumed run may change only {', '.join(sorted(MAY_CHANGE))}, and rollout.vllm "
            "but its dtype"
        )


def _may_change(key: str) -> bool:
    servers = key.startswith("rollout.vllm.") and key != "rollout.vllm.dtype"
    return key in MAY_CHANGE or servers
