"""Servers that the run starts: on this machine, reached through a file that only its user can open.

A server's routes that replace weights have no key, so it listens on no port at all.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from forkpoint.config.stages import VllmConfig
from forkpoint.errors import ConfigError, EngineError, Interrupted
from forkpoint.sampling.vllm import keeper
from forkpoint.sampling.vllm.client import Client
from forkpoint.sampling.vllm.folder import OwnFolder

FROM_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_")
"""How names of variables begin by which a server would believe to be a process of the run."""
A_FAULT = re.compile(r"^(?!.*WARNING).*?\b(\w+(?:Error|Exception): .+)", re.MULTILINE)
"""In a server's log."""


@dataclass(slots=True, kw_only=True)
class Launched:
    """A server and the process that keeps it."""

    client: Client
    log: Path
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self, model: Path) -> None:
        """Start it, once more if need be, from the weights in a folder; ``wait`` then waits until
        it answers."""
        self.close()
        with suppress(FileNotFoundError):
            Path(self.client.address.removeprefix("unix:")).unlink()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", keeper.__file__, *self.command, "--model", str(model)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,  # what ends a whole group of processes must not end it
            )

    def wait(self, minutes: float, should_stop: Callable[[], bool] = lambda: False) -> None:
        """
        Raises:
            EngineError: it ended, or does not answer in time; with what its log says.
            Interrupted: ``should_stop()`` turned true.
        """
        patience = time.monotonic() + 60 * minutes
        while not self.client.ready():
            if should_stop():
                raise Interrupted("stopped while a vLLM server started")
            if not self.runs or time.monotonic() > patience:
                happened = f"did not answer within {minutes:g} minutes" if self.runs else "ended"
                raise EngineError(f"a vLLM server was started and {happened}: {self._told()}")
            time.sleep(0.2)

    @property
    def runs(self) -> bool:
        """Whether its process is there."""
        return self.process is not None and self.process.poll() is None

    def _told(self) -> str:
        """The first fault in its log, and where the log stays."""
        kept = Path(tempfile.mkdtemp(prefix="forkpoint-vllm-")) / "server.log"
        shutil.copy(self.log, kept)
        faults = A_FAULT.search(kept.read_text(errors="replace"))
        return f"{faults[1][:300] if faults else 'it said nothing of a fault'}; its log: {kept}"

    def close(self) -> None:
        """End it."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()  # its keeper ends it
            self.process.wait()
            self.process = None


def prepare(config: VllmConfig, index: int, home: Path, *, dtype: str) -> Launched:
    """A server yet to be started.

    Args:
        index: which of the run's servers.
        home: a folder of this user's alone, for its socket and log.
        dtype: what it computes in.
    """
    address = home / f"{index}.sock"
    command = [
        *(config.python or sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--served-model-name", "policy", "--uds", str(address)),
        *("--dtype", dtype, "--logprobs-mode", "processed_logprobs", "--enable-prefix-caching"),
        *("--generation-config", "vllm", "--max-num-seqs", str(config.concurrency)),
        *config.arguments,
    ]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((*FROM_TORCHRUN, "PYTHON"))
    }
    environment |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    if config.devices:
        environment["CUDA_VISIBLE_DEVICES"] = config.devices[index]
    return Launched(
        client=Client(f"unix:{address}"),
        log=home / f"{index}.log",
        command=command,
        environment=environment,
    )


def socket_home() -> OwnFolder:
    """For sockets and logs; a socket's path must be short."""
    return OwnFolder(Path(tempfile.gettempdir()), "forkpoint-s-")


def weights_home(config: VllmConfig, copies_bytes: int) -> OwnFolder:
    """Where weights have room.

    Args:
        copies_bytes: of the weights that lie there at a time.

    Raises:
        ConfigError: ``weights_dir`` cannot be made or written.
    """
    shared = Path("/dev/shm")
    if config.weights_dir is not None:
        base = Path(config.weights_dir).expanduser().absolute()
        try:
            base.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=base).close()
        except OSError as error:
            raise ConfigError(f"rollout.vllm.weights_dir: {error}") from error
    elif shared.is_dir() and shutil.disk_usage(shared).free > copies_bytes:
        base = shared
    else:
        base = Path(tempfile.gettempdir())
    return OwnFolder(base, "forkpoint-w-")
