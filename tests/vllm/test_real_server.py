"""Training through vLLM itself, on a CPU; `make test-vllm` installs it beside this environment."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forkpoint.config.stages import ModelConfig
from forkpoint.lab import BASE_POLICIES
from forkpoint.policy import load_model
from forkpoint.policy.teacher import score_completions
from forkpoint.runs.completions import read_completions
from forkpoint.sampling.vllm.client import Client

PYTHON = os.environ.get("FORKPOINT_VLLM_PYTHON")
"""The Python that has vLLM; relative paths are from the repository."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="FORKPOINT_VLLM_PYTHON names no Python with vLLM"),
]

ARGUMENTS = ["--gpu-memory-utilization", "0.1", "--enforce-eager"]
ENVIRONMENT = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}


def command(run: Path, **settings: Any) -> list[str]:
    given = {
        "training.threads": 1,
        "training.steps": 3,
        "evaluation.every": 0,
        "checkpoint.every": 1,
        "scoring.workers": 1,
        "rollout.engine": "vllm",
        "rollout.vllm.python": str(Path(str(PYTHON)).absolute()),
        "rollout.vllm.arguments": ARGUMENTS,
    }
    given |= {name.replace("__", "."): value for name, value in settings.items()}
    what = ["--resume"] if (run / "config.json").exists() else ["lab_game"]
    options = [part for k, v in given.items() for part in ("--set", f"{k}={json.dumps(v)}")]
    return [sys.executable, "-m", "forkpoint", "train", *what, *options, "--run-dir", str(run)]


@contextmanager
def started(run: Path, **settings: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(run, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def lines(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(what: Callable[[], Any], seconds: float = 240) -> Any:
    patience = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < patience, "it did not come"
        time.sleep(0.05)
    return found


def servers_of(process: subprocess.Popen[str]) -> list[int]:
    """The vLLM servers a run has started, which its keepers keep."""

    def children(parent: int) -> list[int]:
        found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return list(map(int, found))

    keepers = [
        pid
        for pid in children(process.pid)
        if "keeper.py" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    return [pid for keeper in keepers for pid in children(keeper)]


def under_way(server: int) -> float:
    """Requests that a server which a run has started is drawing completions for now."""
    words = Path(f"/proc/{server}/cmdline").read_text().split("\0")
    client = Client(f"unix:{words[words.index('--uds') + 1]}")
    said = client._call("GET", "/metrics", timeout=10).decode().splitlines()
    counts = [line for line in said if line.startswith("vllm:num_requests_running")]
    assert counts, "the server does not say how many requests are under way"
    return sum(float(line.rsplit(" ", 1)[-1]) for line in counts)


def test_a_reward_rises_through_the_server(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        command(run, training__steps=12, training__mini_batches=2, optim__lr=4e-4),
        capture_output=True,
        text=True,
        timeout=900,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = lines(run)
    rewards = [line["reward/mean"] for line in found]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.05, rewards
    gaps = [line["mismatch/probe_max_nats"] for line in found[1:]]
    assert len(gaps) == 11
    assert max(gaps) < 1e-3
    assert all(line["mismatch/kl"] < 1e-6 for line in found)
    assert abs(surprise(run)) < 4
    print("rewards", [round(r, 3) for r in rewards], "largest gap", max(gaps))
    assert not list(Path("/dev/shm").glob(f"forkpoint-*-{os.getpid()}-*"))


def surprise(run: Path) -> float:
    """How far the mean of -ln p is from the mean entropy over the tokens of the first step, whose
    weights are the base's, in standard errors: far from 0 if draws do not follow the policy."""
    rows = list(read_completions([run / "completions" / "train" / "step_00001.parquet"]))
    pairs = [(row.prompt_token_ids, row.completion) for row in rows]
    model = load_model(ModelConfig(device="cpu")).model
    scored = score_completions(model, pairs, temperature=1.0, top_k=1, max_tokens=8192)
    gaps = np.concatenate([-c.logprobs - c.entropies for c in scored if c.entropies is not None])
    assert len(gaps) > 10_000
    return float(gaps.mean() / gaps.std() * len(gaps) ** 0.5)


def test_a_server_that_is_killed_in_the_middle_of_a_step(tmp_path: Path) -> None:
    """The other one does its work, and it is started anew when new weights are given."""
    run = tmp_path / "run"
    with started(run, rollout__vllm__launch=2, training__steps=3) as process:
        wait_for(lambda: len(lines(run)) >= 1)
        server = servers_of(process)[0]
        wait_for(lambda: under_way(server) >= 4)  # the probe of new weights is one request
        os.kill(server, signal.SIGKILL)
        said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "is given up" in said
    found = lines(run)
    assert len(found) == 3
    assert min(line["rollout/servers"] for line in found) == 1
    assert found[-1]["rollout/servers"] == 2
    assert sum(line["rollout/redrawn"] for line in found) > 0
    assert all(line["mismatch/kl"] < 1e-6 for line in found)


def test_a_run_that_is_killed_takes_its_servers_with_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(run) as process:
        wait_for(lambda: len(lines(run)) >= 1)
        (server,) = servers_of(process)
        process.kill()
        wait_for(lambda: not Path(f"/proc/{server}").exists(), 30)
    with started(run, training__steps=2) as process:
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert [line["step"] for line in lines(run)] == [1, 2]


@pytest.fixture
def users_server() -> Iterator[str]:
    """As a user may start one: of the tied model itself, log-probabilities as vLLM has them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            *(str(PYTHON), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(BASE_POLICIES["lab:game"]), "--dtype", "float32", *ARGUMENTS),
            *("--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm"),
        ],
        env=ENVIRONMENT | {"VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: _answers(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def test_servers_of_the_users(users_server: str, tmp_path: Path) -> None:
    given = {
        "optim__lr": 0.003,
        "rollout__vllm__servers": [users_server],
        "rollout__vllm__weights_dir": str(tmp_path / "weights"),
    }
    # Its log-probabilities are those at temperature 1: found out before anything is sampled.
    with started(tmp_path / "a", rollout__temperature=0.7, **given) as process:
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "--logprobs-mode processed_logprobs" in " ".join(said.split())
    assert lines(tmp_path / "a") == []
    # At temperature 1 they are the same, and a tied head gets new weights, too.
    run = tmp_path / "b"
    with started(run, **given) as process:
        wait_for(lambda: len(lines(run)) >= 2)
        reload = {
            "method": "reload_weights",
            "kwargs": {"weights_path": str(BASE_POLICIES["lab:game"])},
        }
        time.sleep(1)
        request = urllib.request.Request(
            f"{users_server}/collective_rpc",
            data=json.dumps(reload).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=60).read()
        said, _ = process.communicate(timeout=300)
    assert lines(run)[1]["mismatch/probe_max_nats"] < 1e-3
    # Somebody has given it other weights while it sampled: nothing of that is trained on.
    assert process.returncode == 2, said
    assert "it has other weights than it was given" in " ".join(said.split())
    assert [line["step"] for line in lines(run)] == [1, 2]
    assert "step_00002" in {path.name for path in (run / "checkpoints").iterdir()}


def _answers(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0
