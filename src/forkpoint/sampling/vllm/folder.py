"""Folders of one run among temporary files, which the next one removes if that run was killed."""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

LOCK = ".lock"
"""Held by the run that made the folder, for as long as it lives, on whatever machine."""


class OwnFolder:
    """A new folder of this user's alone."""

    def __init__(self, base: Path, prefix: str) -> None:
        """
        Args:
            base: folders there with this prefix whose runs are gone are removed.
        """
        for old in base.glob(f"{prefix}*"):
            _remove_if_left(old)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove it."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _remove_if_left(folder: Path) -> None:
    """Without a lock in it, it may be somebody else's, or just be made."""
    with suppress(OSError):
        if folder.stat().st_uid != os.getuid():
            return
        lock = os.open(folder / LOCK, os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while its owner lives
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
