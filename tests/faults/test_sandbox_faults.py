"""Programs that attack: what is outside of the sandbox stays unread, unreached and alive."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forkpoint.config import parse_config
from forkpoint.errors import Interrupted
from forkpoint.rewards import Scorer, build_scorer
from forkpoint.types import Problem
from forkpoint.verifiers.code import SPARE_OUTPUT, CodeVerifier, Outcome
from forkpoint.verifiers.sandbox import CHUNK, Ran
from tests.faults.test_verifier_faults import GRACE_S, lives, pair, wait_for
from tests.sandboxed import answered, make_sandbox, settings
from tests.unit.test_rewards import task

MOST = 1 << 20
SECRET = "the-answer-is-43817"


def run(program: str, given: bytes = b"", *, seconds: int = 6, memory_gb: float = 1.0) -> Ran:
    sandbox = make_sandbox(seconds=seconds, memory_gb=memory_gb)
    return sandbox.run(program, given, most_output=MOST)


def said(program: str, **settings: Any) -> str:
    """What a program prints that comes to its end."""
    ran = run(program, **settings)
    assert (ran.status, ran.stopped) == (0, None), ran
    return ran.output.decode()


TRY = """
def tried(attempt):
    try:
        return attempt()
    except OSError as error:
        return type(error).__name__
"""


# ---- out of reach --------------------------------------------------------------------------------


def test_no_network_not_even_the_machines_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        program = f"""{TRY}
import socket, urllib.request
print(tried(lambda: socket.create_connection(("127.0.0.1", {port}), 1)))
print(tried(lambda: socket.create_connection(("1.1.1.1", 53), 1)))
print(tried(lambda: socket.socket(socket.AF_UNIX)))
print(tried(lambda: socket.socket(socket.AF_VSOCK)))
print(tried(lambda: urllib.request.urlopen("http://127.0.0.1:{port}")))
"""
        assert said(program).split() == ["PermissionError"] * 4 + ["URLError"]
        with pytest.raises(TimeoutError):
            server.accept()


def test_nothing_of_the_machine_is_written(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    target.write_text("kept")
    places = ["/usr/bin/python3", "/usr/x", "/x", "/etc/x", "/dev/x", "/dev/shm/x", "/program.py"]
    program = f"""{TRY}
import os
for place in {[*places, str(target), str(Path.home() / "x")]}:
    print(tried(lambda: open(place, "w")))
os.symlink({str(target)!r}, "/tmp/link")
print(tried(lambda: open("/tmp/link", "w")))
print(tried(lambda: os.rename("/program.py", "/tmp/p")), tried(lambda: os.chmod("/usr", 0o777)))
open("/tmp/own", "w").write("x")
print(os.listdir("/tmp"))
"""
    lines = said(program).splitlines()
    assert set(lines[:-1]) <= {"OSError", "FileNotFoundError", "OSError OSError"}
    assert sorted(eval(lines[-1])) == ["link", "own"]
    assert target.read_text() == "kept"
    assert not Path("/tmp/own").exists()
    # nor is anything left for the next program
    assert said("import os\nprint(os.listdir('/tmp'))") == "[]\n"


def test_nothing_of_the_users_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o777)
    own = [str(secret), str(Path.home()), os.getcwd(), "/etc/passwd", "/proc/1/environ", "/sys"]
    program = f"""{TRY}
import os, subprocess
for place in {own}:
    print(tried(lambda: os.listdir(place) if not place[-1:] == "t" else open(place).read()))
os.symlink({str(secret)!r}, "/tmp/link")
print(tried(lambda: open("/tmp/link").read()))
print(tried(lambda: os.listdir("/tmp/../../../home")))
print(sorted(os.listdir("/")), dict(os.environ), os.getcwd(), os.uname(), os.getuid())
"""
    out = said(program)
    assert SECRET not in out
    # the way to its Python may lead through the home folder, where nothing else is seen
    assert out.splitlines()[0] == "FileNotFoundError"
    assert out.splitlines()[3:8] == ["FileNotFoundError"] * 5
    assert "proc" not in out
    assert "MY_TOKEN" not in out
    assert os.uname().nodename not in out


def test_neither_answers_nor_other_tests_are_inside() -> None:
    tests = {"inputs": ["first input\n", f"{SECRET[:6]}...\n"], "outputs": [SECRET, SECRET]}
    verifier = CodeVerifier("tests", make_sandbox())
    search = """
import gc, os, sys
print(gc.get_objects(), sys.argv, sys.orig_argv, os.environ, sys.stdin.read())
for folder, folders, names in os.walk("/"):
    folders[:] = [name for name in folders if name not in ("usr", "lib", "lib64", "dev")]
    for name in names:
        print(folder, name, open(os.path.join(folder, name), "rb").read())
"""
    found: list[Ran] = []

    def attend(*arguments: Any, **settings: Any) -> Ran:
        found.append(original(*arguments, **settings))
        return found[-1]

    original = type(verifier.sandbox).run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(verifier.sandbox), "run", attend)
        patch.setattr("forkpoint.verifiers.code.SPARE_OUTPUT", 1 << 30)
        judgement = verifier.judge({"tests": tests}, answered(search))
    assert (judgement.outcome, judgement.test) == (Outcome.WRONG, 0)
    assert b"first input" in found[0].output
    assert SECRET.encode() not in found[0].output
    assert b"..." not in found[0].output.split(b"program.py")[0]


# ---- what it uses up -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "ending"),
    [
        ("while True: pass", Outcome.TIME),
        ("import time\ntime.sleep(1000)", Outcome.TIME),
        ("import os, time\nos.close(1)\nos.close(2)\nos.close(0)\ntime.sleep(1000)", Outcome.TIME),
        ("import sys\nwhile True: sys.stderr.write('x' * 10**6)", Outcome.TIME),
        ("import threading\n"
         "for _ in range(8): threading.Thread(target=eval, args=('9**9**9',)).start()",
         Outcome.TIME),
        ("9**9**9", Outcome.TIME),  # in C
        ("while True: print('x' * 1000)", Outcome.OUTPUT),
        ("print('x' * 10**8)", Outcome.OUTPUT),
        ("x = [0] * 10**10", Outcome.MEMORY),
        ("x = []\nwhile True: x.append(bytearray(10**7))", Outcome.MEMORY),
        ("import mmap\nx = [mmap.mmap(-1, 10**8) for _ in range(100)]", Outcome.CRASHED),
        ("import os\nos.memfd_create('x')", Outcome.CRASHED),
        ("import os\nwhile True: os.fork()", Outcome.CRASHED),
        ("import subprocess\nsubprocess.run(['/usr/bin/true'])", Outcome.CRASHED),
        ("import threading, time\n"
         "while True: threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
         Outcome.CRASHED),
        ("import os\nx = [open('/tmp/%d' % i, 'w') for i in range(10**6)]", Outcome.CRASHED),
        ("i = 0\nwhile True:\n    i += 1\n    open(f'/tmp/{i}', 'wb').write(bytes(10**6))",
         Outcome.CRASHED),
        ("open('/tmp/x', 'wb').truncate(10**12)", Outcome.CRASHED),
    ],
)  # fmt: skip
def test_whatever_is_used_up_is_bounded(program: str, ending: Outcome) -> None:
    begun = time.monotonic()
    verifier = CodeVerifier("tests", make_sandbox(seconds=1))
    found = verifier.judge({"tests": {"inputs": [""], "outputs": ["1"]}}, answered(program))
    assert (found.outcome, found.test) == (ending, 0)
    assert time.monotonic() - begun < 2 * verifier.sandbox.clock_s + GRACE_S / 6


def test_no_more_is_read_than_is_allowed() -> None:
    ran = run("import os\nwhile True: os.write(1, b'x' * 10**6)")
    assert ran.stopped == "output"
    assert MOST < len(ran.output) <= MOST + CHUNK
    ran = run("import os\nfor _ in range(300): os.write(2, b'x' * 10**6)\nraise ValueError('end')")
    assert ran.status == 1
    assert len(ran.errors) < SPARE_OUTPUT
    assert ran.errors.endswith(b"ValueError: end\n")


def test_a_huge_input_is_read_or_left() -> None:
    given = b"7 " * 10_000_000
    begun = time.monotonic()
    assert said("print(len(open(0, 'rb').read()))", given=given) == "20000000\n"
    assert said("print(1)", given=given) == "1\n"
    assert said("import os\nos.close(0)\nprint(2)", given=given) == "2\n"
    assert time.monotonic() - begun < GRACE_S


# ---- its guards ----------------------------------------------------------------------------------


def test_guards_cannot_be_killed_traced_or_left() -> None:
    program = f"""{TRY}
import ctypes, os, resource, signal
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
os.kill(1, signal.SIGKILL)
os.kill(1, signal.SIGSTOP)
print(os.getppid())
print(tried(lambda: os.kill(-1, signal.SIGCONT)))
print(tried(lambda: call({101 if os.uname().machine == "x86_64" else 117}, 16, 1, 0, 0)))
print(tried(lambda: open("/proc/1/mem", "r+b")))
print(tried(lambda: call({272 if os.uname().machine == "x86_64" else 97}, 0x10000000)))
def more(kind):
    try:
        resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except ValueError:
        return "refused"
print(*map(more, (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC)))
print(tried(lambda: open("/dev/tty")))
"""
    assert said(program).splitlines() == [
        "1",
        "ProcessLookupError",  # there is nobody else
        "PermissionError",
        "FileNotFoundError",
        "PermissionError",
        "refused refused refused",
        "OSError",
    ]


CHEATS = [
    "import os\nos._exit(0)",
    "import sys\nsys.exit(0)",
    "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "import json\njson.dump = lambda *a, **k: None\ndef work(x): return 1",
    "import json\njson.loads = lambda text: 43817\ndef work(x): return x",
    "class Yes(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
    "def work(x): return Yes(1)",
    "class Yes:\n    def tolist(self): return True\ndef work(x): return Yes()",
    "import os\ndef work(x):\n    os.write(3, b'43817x')\n    os._exit(0)",
    "import sys\ndef work(x):\n    frame = sys._getframe()\n"
    "    while frame.f_back:\n        frame = frame.f_back\n        frame.f_locals.clear()\n"
    "    return sorted(frame.f_globals)",
    "import builtins\nbuiltins.getattr = lambda *a: (lambda *b: True)\ndef work(x): return True",
    "import atexit, os\natexit.register(os._exit, 0)\ndef work(x): return {'right': True}",
    "import sys\nsys.modules['__main__'].call = print\ndef work(x): return 'right'",
]


@pytest.mark.parametrize("program", CHEATS)
@pytest.mark.parametrize("function", ["work", None])
def test_no_program_is_right_that_does_not_know_the_answer(
    program: str, function: str | None
) -> None:
    tests = {"inputs": ["17"], "outputs": ["43817"], "fn_name": function}
    found = CodeVerifier("tests", make_sandbox()).judge({"tests": tests}, answered(program))
    assert found.outcome in (Outcome.WRONG, Outcome.CRASHED)


# ---- what is left running ------------------------------------------------------------------------

SPIN = answered("import time\nwhile True: time.sleep(0.01)")
"""A program whose processor time never runs out."""


def children(pid: int) -> list[int]:
    """The processes that this one started, and those that they did."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    found, waiting = [], [pid]
    while waiting:
        mine = parents.get(waiting.pop(), [])
        found += mine
        waiting += mine
    return found


def named(pids: list[int], name: str) -> list[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().startswith(name):
                found.append(pid)
    return found


def inside(pid: int) -> list[int]:
    """bubblewrap's two processes and the program's, of every sandbox below a process."""
    guards = named(children(pid), "bwrap")
    return sorted({*guards, *(p for guard in guards for p in children(guard))})


@pytest.fixture
def make_scorer() -> Iterator[Callable[..., Scorer]]:
    made: list[Scorer] = []

    def make(**more: Any) -> Scorer:
        scoring = {"allow_code": True, "workers": 2}
        config = parse_config({"rewards": [settings(**more)], "scoring": scoring})
        made.append(build_scorer(config, task("tests")))
        return made[-1]

    yield make
    for scorer in made:
        scorer.close()


def spinning() -> tuple[Problem, Any]:
    return pair(SPIN, tests={"inputs": [""], "outputs": ["1"]})


def watched(job: Callable[[], Any], pid: int, programs: int) -> tuple[list[int], Any]:
    """Do a job; the sandboxes' processes while it ran, and what came of it."""
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(job())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    seen: set[int] = set()

    def all_there() -> bool:
        seen.update(found := inside(pid))
        return len(named(found, "python")) >= programs or not thread.is_alive()

    assert wait_for(all_there, GRACE_S)
    thread.join(GRACE_S)
    assert results
    return sorted(seen), results[0]


def all_gone(pids: list[int]) -> bool:
    return wait_for(lambda: not any(map(lives, pids)), 2.0)


def test_namespaces_of_its_own(make_scorer: Callable[..., Scorer]) -> None:
    scorer = make_scorer(test_seconds=60, timeout_s=3.0)
    shared: dict[str, set[str]] = {}

    def look() -> bool:
        for pid in named(inside(os.getpid()), "python"):
            with contextlib.suppress(OSError):
                for kind in ("net", "pid", "user", "ipc", "uts", "mnt", "cgroup"):
                    shared.setdefault(kind, set()).add(os.readlink(f"/proc/{pid}/ns/{kind}"))
        return len(shared) == 7

    thread = threading.Thread(target=scorer.score, args=([spinning()],))
    thread.start()
    try:
        assert wait_for(look, GRACE_S)
    finally:
        thread.join(GRACE_S)
    ours = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in shared}
    assert [kind for kind, found in shared.items() if ours[kind] in found] == []


def test_nothing_lives_on_after_a_verdict(make_scorer: Callable[..., Scorer]) -> None:
    scorer = make_scorer(test_seconds=1)
    pids, scores = watched(lambda: scorer.score([spinning()] * 2), os.getpid(), 2)
    assert [s.error for s in scores] == ["code: out of time in test 0"] * 2
    assert len(pids) >= 6
    assert all_gone(pids)


def test_a_time_out_of_the_whole_completion_ends_the_program(
    make_scorer: Callable[..., Scorer],
) -> None:
    scorer = make_scorer(test_seconds=600, timeout_s=3.0)
    pids, scores = watched(lambda: scorer.score([spinning()] * 2), os.getpid(), 2)
    assert [s.error for s in scores] == ["code: timeout after 3 s"] * 2
    assert [s.reward for s in scores] == [0.0, 0.0]
    assert len(pids) >= 6
    assert all_gone(pids)


def test_a_stop_ends_the_program(make_scorer: Callable[..., Scorer]) -> None:
    scorer = make_scorer(test_seconds=600)

    def should_stop() -> bool:
        return len(named(inside(os.getpid()), "python")) == 2

    pids, stopped = watched(lambda: scorer.score([spinning()] * 2, should_stop), os.getpid(), 2)
    assert isinstance(stopped, Interrupted)
    assert len(pids) >= 6
    assert all_gone(pids)


RUN = """
import json, sys
from types import SimpleNamespace
from forkpoint.config import parse_config
from forkpoint.rewards import build_scorer
from forkpoint.types import Completion, FinishReason, Problem

if __name__ == "__main__":
    reward, text = json.loads(sys.argv[1])
    config = parse_config({"rewards": [reward], "scoring": {"allow_code": True, "workers": 2}})
    scorer = build_scorer(config, SimpleNamespace(columns={"tests"}, verifier=None))
    problem = Problem(id="p", prompt="?", columns={"tests": {"inputs": [""], "outputs": ["1"]}})
    answer = Completion(
        token_ids=(5,), logprobs=(0.0,), entropies=None, finish_reason=FinishReason.STOP, text=text
    )
    scorer.score([(problem, answer)] * 2)
"""


@pytest.mark.parametrize("who", ["run", "worker"])
def test_programs_die_with_whom_is_killed(tmp_path: Path, who: str) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    reward = json.dumps([settings(test_seconds=600, timeout_s=1000.0), SPIN])
    process = subprocess.Popen([sys.executable, str(script), reward], env=environment)
    try:
        assert wait_for(lambda: len(named(inside(process.pid), "python")) == 2, GRACE_S)
        pids = inside(process.pid)
        if who == "worker":
            parents = [p for p in children(process.pid) if named(children(p), "bwrap")]
            killed = sorted({*parents} - {*pids})
            assert len(killed) == 2
        else:
            killed = [process.pid]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        gone = all_gone(pids)
    finally:
        process.kill()
        process.wait()
    assert len(pids) == 6
    assert gone
