"""Runs one program, inside the sandbox and by its Python: nothing of this package is there.

Its text is handed to that Python (``sandbox.py``), it is never imported here. Whatever follows
``READY`` may be the doing of the program, which can change everything in its process; so nothing
is judged here. What it is not told, it cannot give away: it gets one test's input and no answer.
"""

import json
import os
import resource
import sys
import types
from importlib import import_module
from typing import Any

PROGRAM = "/program.py"
READY = b"ready\n"
"""What is written to standard error before the program runs: what fails earlier is no fault of
the program's."""
OUT_OF_MEMORY = 112
"""The exit status of a program that filled its memory."""
PROCESSES, FILES, FILE_BYTES = 64, 64, 1 << 24
"""Threads at a time, open files, and bytes in one file."""
RECURSION = 50_000

PRELUDE = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random"),
    *("statistics", "itertools", "functools", "operator", "io", "sys", "json", "builtins"),
    "typing",
)
"""Modules whose names a program may use without importing them, as in LiveCodeBench."""


def main(memory: int, seconds: int, function: str) -> None:
    """Run the program with standard input as it is; with ``function``, call that instead.

    Args:
        memory: bytes of address space.
        seconds: of the processor.
        function: its name, or nothing. Each line of standard input is an argument, as JSON, and
            what it returns is written to standard output, as JSON; what it prints is dropped.
    """
    limit(memory, seconds)
    sys.argv, sys.path = [PROGRAM], [place for place in sys.path if place]
    sys.setrecursionlimit(RECURSION)
    known = prelude()
    os.write(2, READY)
    try:
        if function:
            call(function, known)
        else:
            run("__main__", known)
    except SystemExit:
        pass  # a program that leaves early is judged by what it has written
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def limit(memory: int, seconds: int) -> None:
    """Set limits that the program can lower and not raise."""
    wanted = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_DATA: memory,
        resource.RLIMIT_NPROC: PROCESSES,
        resource.RLIMIT_NOFILE: FILES,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in wanted.items():
        _, before = resource.getrlimit(kind)
        most = most if before == resource.RLIM_INFINITY else min(most, before)
        resource.setrlimit(kind, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # a signal, then the end


def prelude() -> dict[str, Any]:
    """The names that a program need not import: all of them, then the modules themselves."""
    modules = {name: import_module(name) for name in PRELUDE}
    found = {}
    for module in modules.values():
        public = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
        found.update({name: getattr(module, name) for name in public})
    return found | modules


def run(name: str, known: dict[str, Any]) -> dict[str, Any]:
    """Run the program as the module ``name``; what it defined."""
    with open(PROGRAM, encoding="utf-8") as file:
        source = file.read()
    module = types.ModuleType(name)
    sys.modules[name] = module
    vars(module).update(known)
    exec(compile(source, PROGRAM, "exec"), vars(module))
    return vars(module)


def call(function: str, known: dict[str, Any]) -> None:
    """Call a function of the program, or a method of its class ``Solution``."""
    arguments = [json.loads(line) for line in sys.stdin.read().split("\n") if line.strip()]
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    defined = run("solution", known)
    owner = defined["Solution"]() if "Solution" in defined else None
    found = getattr(owner, function) if owner is not None else defined[function]
    json.dump(found(*arguments), answer, default=lambda value: value.tolist())
    answer.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
