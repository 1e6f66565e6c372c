"""Runs one command, and ends it when this process's input ends: when whoever started it is gone.

A server must not outlive a run that was killed, and keep its memory. It runs as a script of its
own, without this package.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

PATIENCE_S = 20.0
"""For a command that is asked to end."""
LEFT_S = 5.0
"""For what it leaves behind, which is asked, too."""


def main(command: list[str]) -> int:
    """Run the command in a session of its own; its exit status."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def watch() -> None:
        while os.read(0, 1024):
            pass
        process.terminate()  # it ends its own processes
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
        process.kill()

    for ignored in (signal.SIGINT, signal.SIGTERM):  # they are for the run, which then ends us
        signal.signal(ignored, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
    status = process.wait()
    patience = time.monotonic() + LEFT_S
    with suppress(ProcessLookupError):  # raised when nobody is left
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < patience:
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
