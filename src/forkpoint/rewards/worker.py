"""What runs in a worker process: one call of a reward function, within limits."""

import ctypes
import importlib
import math
import os
import resource
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from forkpoint.types import Completion, Problem
from forkpoint.verifiers.text import OverLimitError

Sample: TypeAlias = tuple[Problem, Completion]

OUT_OF_MEMORY = 112
"""The exit status of a worker that reached its memory limit."""
MOST_CHARACTERS = 300
"""Of an error's text."""
LARGEST_REWARD = 1e30
"""In magnitude: squares of float64 and advantages in float32 stay finite."""
PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>: the signal that a process gets when its parent ends."""
WATCH_S = 0.5
"""How often a worker looks for its parent, where the kernel gives no such signal."""
NOT_THE_USERS = (
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    str(Path(__file__).parents[1]),
    "<",
)
"""How the file names of code begin that is Python's, a library's, this package's or made up."""


class Part(NamedTuple):
    """One reward function's value for one completion, and why it is missing or not its own."""

    value: float | None
    error: str | None = None
    timed_out: bool = False
    """The function used up its time or its memory, or it says that the completion did so."""


def run(call: Any, samples: Sequence[Sample]) -> list[Part] | None:
    """One part per sample. None: a call for several samples failed as a whole.

    Only numbers and text go back to the run: an exception of the user's may not survive the way,
    and ``sys.exit()`` would end the run. After a ``MemoryError`` the process ends, since a verifier
    that kept what filled the memory would fail on every sample to come.
    """
    try:
        return evaluate(call, samples)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except OverLimitError as error:
        return [Part(None, str(error), timed_out=True)]
    except BaseException as error:  # whatever a verifier raises is data
        return [Part(None, describe(error))] if len(samples) == 1 else None


def evaluate(call: Any, samples: Sequence[Sample]) -> list[Part]:
    """One part per sample; whatever the function raises goes through."""
    values = [call(*samples[0])] if len(samples) == 1 else call.batch(samples)
    return [_part(value) for value in values]


def describe(error: BaseException) -> str:
    """One short line: the user's file and line if the error comes from there, type and text."""
    try:
        said = " ".join(str(error).split())
    except BaseException:  # its text is code of the user's, too
        said = "an error without a text"
    text = f"{_place(error)}{type(error).__name__}: {said}"
    text = text.encode(errors="backslashreplace").decode()  # half a surrogate pair fits in no file
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def start(parent: int, memory_gb: float, imports: Sequence[str]) -> None:
    """Prepare a new worker: when it ends, the signals it obeys, its modules and its memory.

    Args:
        parent: the process id of the run.
        memory_gb: what it may allocate beyond what its modules take, in 10^9 bytes.
        imports: modules to load now: slow ones would use up the first sample's time.
    """
    _die_with(parent)
    with suppress(PermissionError):  # it leads a session already
        os.setpgid(0, 0)  # a group of its own: what a verifier starts is killed with it
    # Ctrl-C is the run's business, which ends the workers. Until here the signal was blocked.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # The default ends a worker at once, even in the middle of a computation in C.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name in imports:
        with suppress(Exception):  # raised again, and noted, when the verifier needs it
            importlib.import_module(name)
    _limit_memory(memory_gb)


def _part(value: Any) -> Part:
    if value is None:
        return Part(None)
    try:
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"the reward {number} is not finite")
        if abs(number) > LARGEST_REWARD:
            raise ValueError(f"the reward {number} is beyond {LARGEST_REWARD:g}")
    except (TypeError, ValueError, OverflowError) as error:
        return Part(None, describe(error))
    return Part(number)


def _place(error: BaseException) -> str:
    """``my_rewards.py:12: ``, the innermost line of the user's own; or nothing."""
    frames = [(f.f_code.co_filename, line) for f, line in traceback.walk_tb(error.__traceback__)]
    for name, line in reversed(frames):
        if not name.startswith(NOT_THE_USERS):
            return f"{Path(name).name}:{line}: "
    return ""


def _die_with(parent: int) -> None:
    """End this process when ``parent`` ends, even by kill -9."""
    if sys.platform == "linux":  # the kernel does it, also in the middle of a computation in C
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before that
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _limit_memory(memory_gb: float) -> None:
    """Let allocations beyond the limit fail; other systems than Linux have no such limit.

    Private writable memory counts, not address space: libraries reserve far more than they use.
    """
    if sys.platform != "linux":
        return
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    held = pages * resource.getpagesize()
    limit, (_, most) = held + int(memory_gb * 1e9), resource.getrlimit(resource.RLIMIT_DATA)
    if most == resource.RLIM_INFINITY or limit < most:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
