"""The sandbox of the tests: found once, or the reason why there is none."""

import shutil
from functools import cache
from typing import Any

import pytest

from forkpoint.errors import RewardError
from forkpoint.verifiers.sandbox import Sandbox, find_sandbox

SYSTEM_PYTHON = "/usr/bin/python3"


@cache
def python_inside() -> str | None:
    """The Python that programs can be run by: this one's, or the system's where this one lies in a
    folder of root's, whom no program is run as.

    Raises:
        RewardError: there is none.
    """
    try:
        find_sandbox(None, seconds=6, memory_gb=1.0)
    except RewardError:
        find_sandbox(SYSTEM_PYTHON, seconds=6, memory_gb=1.0)
        return SYSTEM_PYTHON
    return None


def settings(**more: Any) -> dict[str, Any]:
    """A reward of type ``code`` that can run here; skips the test without bubblewrap."""
    if shutil.which("bwrap") is None:
        pytest.skip("programs are run in bubblewrap: apt-get install bubblewrap")
    python = python_inside()
    return {"type": "code", **({"python": python} if python else {}), **more}


def make_sandbox(*, seconds: int = 6, memory_gb: float = 1.0) -> Sandbox:
    """A sandbox with these limits; skips the test without bubblewrap."""
    python = settings().get("python")
    return find_sandbox(python, seconds=seconds, memory_gb=memory_gb)


def answered(program: str) -> str:
    """A completion that ends with a program."""
    return f"Here it is:\n\n```python\n{program}\n```\n"
