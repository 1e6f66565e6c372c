"""Runs a program that nobody has read, where it can reach nothing: bubblewrap, limits, a clock.

Namespaces of its own (no network, no other process, another user), no capability, no variable of
the environment; of the file system the system's programs and libraries, read-only, and an empty
``/tmp``; no ``/proc``, by which it could write into the memory of its guard. ``syscalls.py`` is
what it cannot ask the kernel, ``inside.py`` what starts it and sets its limits. If any of this
cannot be had, nothing is run.
"""

import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

from forkpoint.errors import RewardError
from forkpoint.verifiers.inside import FILE_BYTES, PROGRAM, READY
from forkpoint.verifiers.syscalls import call_filter

NOBODY = 65534
"""The user a program is inside, and outside as well if the run is root's."""
SYSTEM = "/usr"
LINKS = ("/bin", "/lib", "/lib64")
"""Where programs look for the system's libraries: links into ``/usr``, or folders."""
LINKER = ("/etc/ld.so.cache", "/etc/alternatives")
VARIABLES = {
    "HOME": "/tmp",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",  # the order of a set is the same in every run
    "MALLOC_ARENA_MAX": "1",  # threads would reserve address space, which is limited
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
ERROR_BYTES = 4096
"""Of standard error: its beginning and its end are kept, this much of each."""
CHUNK = 1 << 16
HELP = "docs/rewards.md says what the sandbox needs"

INSIDE = Path(__file__).with_name("inside.py").read_text(encoding="utf-8")
ASK = "import json, sys; print(json.dumps([sys.executable, sys.prefix, sys.base_prefix]))"
TRIAL = """
import os, socket

def refused(attempt):
    try:
        attempt()
    except OSError:
        return True

shut = [
    refused(os.fork),
    refused(socket.socket),
    refused(lambda: open("/usr/forkpoint", "w")),
    refused(lambda: open("/forkpoint", "w")),
    not os.path.exists("/etc/passwd"),
    not os.path.exists("/proc/1"),
    os.getuid() == 65534,
    os.getppid() == 1,
]
open("/tmp/own", "w").close()
print(input(), all(shut), shut)
"""
"""Tries what the sandbox must refuse, and what it must allow."""


class Ran(NamedTuple):
    """What a program did before it ended or was ended."""

    status: int
    """0: it ended well; 128 + n: signal n ended it."""
    output: bytes
    errors: bytes
    """The end of what it wrote to standard error."""
    stopped: Literal["time", "output"] | None = None
    """Why it was ended."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Where programs run, and their limits. Picklable; holds no resource."""

    bwrap: str
    """The path of bubblewrap's program."""
    python: str
    """The path of the Python that runs programs."""
    visible: tuple[str, ...]
    """Folders that it needs, beside the system's."""
    seconds: int
    """Of the processor. By the clock a program has ``clock_s``."""
    memory_gb: float
    """10^9 bytes of address space."""

    @property
    def clock_s(self) -> float:
        """More than the seconds of the processor: a busy machine makes no program wrong."""
        return 2.0 * self.seconds + 1.0

    def run(self, program: str, given: bytes, *, most_output: int, function: str = "") -> Ran:
        """Run a program once.

        Args:
            given: its standard input.
            most_output: bytes of standard output after which it is ended.
            function: see ``inside.main``.

        Raises:
            RewardError: the sandbox did not come up, so the program did not run.
        """
        source = _file_of(program.encode(errors="replace"))  # half a surrogate pair is no source
        calls = _file_of(call_filter())
        root = os.geteuid() == 0
        try:
            process = subprocess.Popen(
                self._command(source, calls, function),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={},  # bubblewrap's own environment can be read inside
                cwd="/",
                pass_fds=(source, calls),
                user=NOBODY if root else None,
                group=NOBODY if root else None,
                extra_groups=[] if root else None,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise RewardError(f"the sandbox cannot be started: {error}; {HELP}") from error
        finally:
            os.close(source)
            os.close(calls)
        with process:
            try:
                ran = _attend(process, given, most_output, time.monotonic() + self.clock_s)
            finally:
                process.kill()  # all that is inside dies with it
        if not ran.errors.startswith(READY):
            said = ran.errors.decode(errors="replace").strip()
            said = said or f"nothing was heard of it within {self.clock_s:g} s"
            raise RewardError(f"the sandbox did not come up: {said[:300]}; {HELP}")
        return ran._replace(errors=ran.errors[len(READY) :])

    def try_out(self) -> None:
        """Run a program that tries to get out.

        Raises:
            RewardError: it did not run, or something was open to it.
        """
        try:
            ran = self.run(TRIAL, b"hello\n", most_output=CHUNK)
        except RewardError as error:
            if os.geteuid() != 0:
                raise
            raise RewardError(
                f"{error}; as root, programs are run as the user nobody, who must be able to read "
                f"{self.python} (rewards.python names another one)"
            ) from error
        if not ran.output.startswith(b"hello True"):
            said = (ran.output + ran.errors)[-300:].decode(errors="replace").strip()
            raise RewardError(f"the sandbox is not shut, so no program is run in it: {said}")

    def _command(self, program: int, calls: int, function: str) -> list[str]:
        """bubblewrap's command line; the first two are open files."""
        memory = str(int(self.memory_gb * 1e9))
        variables = [word for pair in VARIABLES.items() for word in ("--setenv", *pair)]
        return [
            *(self.bwrap, "--unshare-user", "--unshare-all", "--disable-userns"),
            *("--uid", str(NOBODY), "--gid", str(NOBODY), "--cap-drop", "ALL"),
            *("--die-with-parent", "--new-session", "--hostname", "sandbox"),
            *("--clearenv", *variables),
            *("--seccomp", str(calls)),
            *("--ro-bind", SYSTEM, SYSTEM),
            *(word for path in LINKS for word in _link(path)),
            *(word for path in LINKER for word in ("--ro-bind-try", path, path)),
            *(word for path in self.visible for word in ("--ro-bind", path, path)),
            *("--dev", "/dev", "--remount-ro", "/dev"),
            *("--size", str(FILE_BYTES), "--tmpfs", "/tmp"),
            *("--file", str(program), PROGRAM, "--remount-ro", "/", "--chdir", "/tmp", "--"),
            *(self.python, "-s", "-c", INSIDE, memory, str(self.seconds), function),
        ]


def find_sandbox(python: str | None, *, seconds: int, memory_gb: float) -> Sandbox:
    """A sandbox that was tried out.

    Args:
        python: the Python that runs programs; default: the one this process's was made from.

    Raises:
        RewardError: there is none on this machine; the message says why.
    """
    if sys.platform != "linux":
        raise RewardError("rewards.type = 'code' runs programs on Linux only: they need bubblewrap")
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise RewardError(
            "rewards.type = 'code' runs programs in bubblewrap, which is not installed: "
            "apt-get install bubblewrap (0.8 or newer)"
        )
    chosen = os.path.realpath(sys.executable) if python is None else python
    try:
        asked = subprocess.run([chosen, "-I", "-c", ASK], capture_output=True, check=True)
        executable, *prefixes = json.loads(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise RewardError(f"rewards.python = {chosen!r} is not a Python: {error}") from error
    for prefix in prefixes:
        if Path(os.path.expanduser("~")).is_relative_to(prefix):
            raise RewardError(
                f"rewards.python = {chosen!r} is installed right in {prefix}, so programs would "
                "see all that is there: name a Python that has a folder of its own"
            )
    visible = {prefix for prefix in prefixes if not Path(prefix).is_relative_to(SYSTEM)}
    found = Sandbox(bwrap, executable, tuple(sorted(visible)), seconds, memory_gb)
    found.try_out()
    return found


def _link(path: str) -> Sequence[str]:
    """Makes ``/lib`` and the like inside what they are outside."""
    if os.path.islink(path):
        return ("--symlink", os.readlink(path), path)
    return ("--ro-bind-try", path, path)


def _file_of(content: bytes) -> int:
    """An open file in memory, read from its beginning."""
    file = os.memfd_create("sandbox")
    with os.fdopen(os.dup(file), "wb") as copy:
        copy.write(content)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _attend(process: "subprocess.Popen[bytes]", given: bytes, most: int, end: float) -> Ran:
    """Write and read until the program ends, is out of time, or has said too much."""
    output, errors, rest = bytearray(), bytearray(), memoryview(given)
    stopped: Literal["time", "output"] | None = None
    with selectors.DefaultSelector() as ready:
        streams: dict[IO[bytes], int] = {
            process.stdin: selectors.EVENT_WRITE,
            process.stdout: selectors.EVENT_READ,
            process.stderr: selectors.EVENT_READ,
        }  # pyright: ignore[reportAssignmentType]
        for stream, event in streams.items():
            os.set_blocking(stream.fileno(), False)
            ready.register(stream, event)
        while ready.get_map() and not stopped:
            for key, _ in ready.select(max(0.0, end - time.monotonic())):
                stream = key.fileobj
                if stream is process.stdin:
                    rest = _write(key.fd, rest)
                    done = not rest
                else:
                    chunk = os.read(key.fd, CHUNK)
                    done = not chunk
                    if stream is process.stdout:
                        output += chunk
                    else:
                        errors = _ends(errors + chunk)
                if done:
                    ready.unregister(stream)
                    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
            if len(output) > most:
                stopped = "output"
            elif time.monotonic() >= end:
                stopped = "time"
    if stopped:
        process.kill()
    try:
        status = process.wait(max(0.0, end - time.monotonic()) if not stopped else None)
    except subprocess.TimeoutExpired:  # it closed its output and goes on
        return Ran(0, bytes(output), bytes(errors), "time")
    return Ran(status, bytes(output), bytes(errors), stopped)


def _write(file: int, rest: memoryview) -> memoryview:
    """What is left to be written; nothing if nobody reads any more."""
    with suppress(BrokenPipeError):
        return rest[os.write(file, rest[:CHUNK]) :]
    return rest[:0]


def _ends(errors: bytearray) -> bytearray:
    """The beginning and the end of what was written, without what lies between."""
    if len(errors) <= 2 * ERROR_BYTES:
        return errors
    return errors[:ERROR_BYTES] + errors[-ERROR_BYTES:]
