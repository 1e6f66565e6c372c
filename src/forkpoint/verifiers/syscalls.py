"""The system calls that a sandboxed program is refused, as a filter for the kernel (seccomp).

Namespaces keep a program away from what it could reach; this keeps it from what they do not bound:

* no second process, so that the limit of memory is one of all the program does. Threads share it;
* no memory outside of its own: shared memory and files in memory count towards no limit;
* no sockets: some kinds, such as those to the host of a virtual machine, know no namespaces;
* none of the calls that holes in the kernel were often found in.
"""

import platform
import struct

from forkpoint.errors import RewardError

CLONE = "clone"
CLONE3 = "clone3"
"""Its flags lie in memory, where no filter sees them; told that there is no such call, the C
library falls back to ``clone``."""
CLONE_THREAD = 0x10000
X32 = 0x40000000
"""Set in the numbers of x86-64's second set of calls, which nothing here uses."""

COMMON = {
    CLONE3: 435,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "memfd_secret": 447,
    "pidfd_getfd": 438,
}
"""Newer calls have one number everywhere."""
CALLS: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        COMMON
        | {CLONE: 56, "fork": 57, "vfork": 58}
        | {"memfd_create": 319, "shmget": 29, "msgget": 68, "semget": 64}
        | {"socket": 41, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311}
        | {"unshare": 272, "setns": 308, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323}
        | {"add_key": 248, "request_key": 249, "keyctl": 250},
    ),
    "aarch64": (
        0xC00000B7,
        COMMON
        | {CLONE: 220}
        | {"memfd_create": 279, "shmget": 194, "msgget": 186, "semget": 190}
        | {"socket": 198, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271}
        | {"unshare": 97, "setns": 268, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282}
        | {"add_key": 217, "request_key": 218, "keyctl": 219},
    ),
}
"""Machine -> its number in <linux/audit.h>, and the calls that are refused with theirs."""

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""Operations of the kernel's filter machine: load a word of what is known of the call; compare it
with a constant and skip; return a verdict."""
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
"""Where these words are; the argument's lower half, on a little-endian machine."""
ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x00050001, 0x00050026
"""Verdicts: the call is made; the process is ended; the call fails with this error."""


def call_filter(machine: str | None = None) -> bytes:
    """The filter in the form that the kernel and bubblewrap read: ``struct sock_filter`` each.

    Args:
        machine: as ``platform.machine()`` names it; default: this one.

    Raises:
        RewardError: a machine whose calls nobody listed here.
    """
    machine = machine or platform.machine()
    if machine not in CALLS:
        raise RewardError(
            f"programs cannot be run on this machine: the sandbox knows the system calls of "
            f"{' and '.join(CALLS)}, not those of {machine}"
        )
    architecture, refused = CALLS[machine]
    steps = [
        _step(LOAD, ARCHITECTURE),
        _step(EQUAL, architecture, then=1),
        _step(RETURN, KILL),
        _step(LOAD, NUMBER),
        _step(AT_LEAST, X32, otherwise=1),
        _step(RETURN, EPERM),
    ]
    for name, number in refused.items():
        if name != CLONE:
            verdict = ENOSYS if name == CLONE3 else EPERM
            steps += [_step(EQUAL, number, otherwise=1), _step(RETURN, verdict)]
    steps += [
        _step(EQUAL, refused[CLONE], otherwise=3),
        _step(LOAD, FIRST_ARGUMENT),
        _step(ANY_BIT, CLONE_THREAD, then=1),
        _step(RETURN, EPERM),
        _step(RETURN, ALLOW),
    ]
    return b"".join(steps)


def _step(operation: int, constant: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """One operation; ``then`` and ``otherwise`` are how many to skip after a comparison."""
    return struct.pack("=HBBI", operation, then, otherwise, constant)
