"""Training through servers: given weights every update, believed only if their numbers are right.

The servers here are fakes that speak the same routes; test_real_server.py does it with vLLM.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forkpoint.config import RunConfig, parse_config
from forkpoint.errors import ConfigError, EngineError, Interrupted
from forkpoint.lab import BASE_POLICIES
from forkpoint.sampling.vllm import client as client_module
from forkpoint.sampling.vllm.client import Client, Draw, Sampled, ServerFault
from forkpoint.sampling.vllm.engine import Probe, VllmEngine
from forkpoint.sampling.vllm.folder import OwnFolder
from forkpoint.training.loop import Outcome, train
from tests.vllm import fake_server
from tests.vllm.fake_server import FakeServer, serving

Fakes = dict[str, FakeServer]


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Fakes]:
    with ExitStack() as stack:
        yield dict(stack.enter_context(serving(BASE_POLICIES["lab:game"])) for _ in range(2))


def config_of(fakes: Fakes, tmp_path: Path, **settings: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "model": {"device": "cpu"},
        "rollout": {
            "engine": "vllm",
            "prompts_per_step": 3,
            "group_size": 4,
            "max_new_tokens": 12,
            "dynamic_sampling": False,
            "vllm": {
                "servers": list(fakes),
                "weights_dir": str(tmp_path / "weights"),
                "stall_s": 20.0,
                "concurrency": 2,
            },
        },
        "rewards": [{"type": "custom", "path": "tests.vllm.rewards:some_number"}],
        "training": {"steps": 2, "mini_batches": 1, "threads": 1},
        "checkpoint": {"every": 1},
        "scoring": {"workers": 1},
    }
    for name, value in settings.items():
        *path, last = name.split("__")
        place = raw
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return parse_config(raw)


def run(fakes: Fakes, tmp_path: Path, **settings: Any) -> tuple[Outcome, list[dict[str, Any]]]:
    outcome = train(config_of(fakes, tmp_path, **settings), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    return outcome, [json.loads(line) for line in lines]


def test_servers_share_the_prompts_and_get_every_update(two: Fakes, tmp_path: Path) -> None:
    outcome, lines = run(two, tmp_path, training__steps=3)
    assert outcome.state.updates == 3
    assert [line["rollout/servers"] for line in lines] == [2, 2, 2]
    assert [line["rollout/lag_updates"] for line in lines] == [0, 0, 0]
    assert all(line["rollout/redrawn"] == 0 for line in lines)
    assert all(line["mismatch/probe_max_nats"] < 1e-4 for line in lines[1:])
    assert all(line["mismatch/kl"] < 1e-7 for line in lines)
    size = sum(p.numel() for p in next(iter(two.values())).model.parameters())
    assert lines[1]["rollout/weights_bytes"] == 4 * size  # the head is written out
    for fake in two.values():
        assert [folder.name for folder in fake.loaded] == ["00000000", "00000001", "00000002"]
        assert fake.completions >= 3
    assert not list((tmp_path / "weights").iterdir())  # nothing is left behind


def test_of_one_server_the_draws_are_repeated(two: Fakes, tmp_path: Path) -> None:
    address, fake = next(iter(two.items()))
    _, first = run({address: fake}, tmp_path / "a")
    _, second = run({address: fake}, tmp_path / "b")
    for name in ("reward/mean", "completion/tokens", "loss/policy"):
        assert [x[name] for x in first] == pytest.approx([x[name] for x in second])


def test_a_server_that_breaks_off_is_named_and_its_prompts_go_elsewhere(
    two: Fakes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address, fake = next(iter(two.items()))

    def die() -> None:
        if fake.completions > 1:
            fake.status = dict.fromkeys(("/v1/completions", "/health"), 500)
            raise ConnectionAbortedError

    fake.before = die
    with caplog.at_level(logging.WARNING):
        outcome, lines = run(two, tmp_path)
    assert outcome.state.updates == 2
    assert lines[0]["rollout/redrawn"] >= 1
    assert [line["rollout/servers"] for line in lines] == [1, 1]
    assert address in caplog.text


def test_a_server_that_stands_still_is_given_up(
    two: Fakes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address, fake = next(iter(two.items()))
    fake.before = fake.resumes.clear  # the next one waits
    with caplog.at_level(logging.WARNING):
        _, lines = run(two, tmp_path, training__steps=1, rollout__vllm__stall_s=0.8)
    assert lines[0]["rollout/servers"] == 1
    assert lines[0]["rollout/redrawn"] >= 1
    assert f"{address} is given up: it has made no token" in caplog.text


def test_a_server_that_is_started_anew_is_found_out_and_its_work_done_again(
    two: Fakes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of step 2 it has the weights it was first started with."""
    fake = next(iter(two.values()))
    start = fake.model

    def restart() -> None:
        if len(fake.loaded) == 2:
            fake.model = start

    fake.before = restart
    with caplog.at_level(logging.WARNING):
        _, lines = run(two, tmp_path, optim__lr=0.01)
    assert "it has other weights than it was given" in caplog.text
    assert lines[1]["rollout/redrawn"] >= 1
    assert lines[1]["rollout/servers"] == 1
    assert lines[1]["mismatch/kl"] < 1e-7  # nothing that was trained on came from the old ones


def test_weights_that_do_not_arrive_stop_the_run_with_its_last_step_saved(
    two: Fakes, tmp_path: Path
) -> None:
    """As a tied head does that keeps the weights it had."""
    for fake in two.values():
        fake.reloads = False
    with pytest.raises(EngineError, match=r"no vLLM server is left.*nats from the trainer's"):
        run(two, tmp_path, optim__lr=0.01)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00001"]
    for fake in two.values():
        fake.reloads = True
    config = config_of(two, tmp_path, optim__lr=0.01)
    assert train(config, tmp_path / "run", resume=True).state.step == 2


def test_one_server_with_other_weights_does_not_stop_the_run(two: Fakes, tmp_path: Path) -> None:
    next(iter(two.values())).reloads = False
    _, lines = run(two, tmp_path, optim__lr=0.01)
    assert [line["rollout/servers"] for line in lines] == [2, 1]
    assert lines[1]["mismatch/probe_max_nats"] < 1e-4


@pytest.mark.parametrize("adapters", [False, True])
def test_two_mini_batches_and_adapters_reach_the_servers(
    two: Fakes, tmp_path: Path, adapters: bool
) -> None:
    lora = {"model__lora": {"rank": 2}} if adapters else {}
    _, lines = run(two, tmp_path, training__mini_batches=2, optim__lr=0.005, **lora)
    assert lines[1]["mismatch/probe_max_nats"] < 1e-4
    assert [folder.name for folder in next(iter(two.values())).loaded] == ["00000000", "00000002"]


def test_a_step_ahead_is_sampled_from_the_weights_before(two: Fakes, tmp_path: Path) -> None:
    _, lines = run(
        two, tmp_path, training__steps=4, rollout__lag=1, optim__lr=0.005, evaluation__every=2,
        evaluation__problems=2, evaluation__at_start=False,
    )  # fmt: skip
    assert [line["rollout/lag_updates"] for line in lines] == [0, 1, 1, 1]
    assert lines[0]["mismatch/kl"] < 1e-7 < lines[2]["mismatch/kl"]
    assert lines[0]["mismatch/importance_mean"] == pytest.approx(1.0, abs=1e-4)
    assert lines[1]["eval/problems"] == 2
    config = config_of(
        two, tmp_path, training__steps=6, rollout__lag=1, optim__lr=0.005, evaluation__every=2,
        evaluation__problems=2, evaluation__at_start=False, rollout__vllm__concurrency=1,
    )  # fmt: skip
    train(config, tmp_path / "run", resume=True)
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[4]["rollout/lag_updates"] == 0  # what was sampled ahead is gone, and sampled anew


def test_a_stop_breaks_off_what_is_being_sampled(two: Fakes, tmp_path: Path) -> None:
    begun = threading.Event()
    for fake in two.values():

        def hang(fake: FakeServer = fake) -> None:
            begun.set()
            fake.resumes.clear()

        fake.before = hang
    outcome = train(config_of(two, tmp_path), tmp_path / "run", should_stop=begun.is_set)
    assert outcome.stopped
    assert outcome.state.step == 0


def test_with_a_key(two: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for fake in two.values():
        fake.key = "secret"
    with pytest.raises(EngineError, match="FORKPOINT_VLLM_KEY"):
        run(two, tmp_path, training__steps=1)
    monkeypatch.setenv("FORKPOINT_VLLM_KEY", "secret")
    assert run(two, tmp_path / "b", training__steps=1)[0].state.step == 1


@pytest.mark.parametrize(
    ("route", "status", "said"),
    [
        ("/pause", 404, "VLLM_SERVER_DEV_MODE=1"),
        ("/v1/completions", 400, "refuses a request"),
        ("/collective_rpc", 500, "no vLLM server is left"),
        ("/health", 503, "no answer to /health"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_sampled(
    two: Fakes, tmp_path: Path, route: str, status: int, said: str
) -> None:
    for fake in two.values():
        fake.status[route] = status
    with pytest.raises(EngineError, match=said):
        run(two, tmp_path)
    assert not list((tmp_path / "weights").iterdir())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rollout__vllm__weights_dir": None}, "weights_dir"),
        ({"rollout__vllm__servers": ["node7:8000"]}, "no address"),
        ({"rollout__vllm__servers": ["http://node7:80000"]}, "no address"),
        ({"rollout__vllm__servers": ["http://node7:abc"]}, "no address"),
        ({"rollout__vllm__servers": ["http://no de:80"]}, "no address"),
        ({"rollout__vllm__servers": ["http://[::1"]}, "no address"),
        ({"rollout__vllm__servers": ["http://" + "x" * 70]}, "no address"),
        ({"rollout__vllm__servers": ["http://node7/\u00fc"]}, "no address"),
        ({"rollout__vllm__weights_dir": "/proc/nowhere"}, "weights_dir"),
        ({"rollout__vllm__devices": ["0", "1"]}, "one for each server"),
        ({"selection__entropy": "rollout"}, "no entropies"),
        ({"rollout__engine": "transformers", "rollout__lag": 1}, "another process"),
    ],
)
def test_settings_that_cannot_be(
    two: Fakes, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run(two, tmp_path, **settings)


DRAW = Draw(max_tokens=4, temperature=1.0, seed=0, eos_ids=(1,), vocabulary=118)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"<html>", "no JSON"),
        ({}, "no token ids"),
        ({"token_ids": [5], "logprobs": None}, "no token ids"),
        ({"token_ids": "abc", "logprobs": {"token_logprobs": [0, 0, 0]}}, "no token ids"),
        ({"token_ids": "51", "logprobs": {"token_logprobs": "00"}}, "no token ids"),
        ({"token_ids": [5.9, 1], "logprobs": {"token_logprobs": [0, 0]}}, "no token ids"),
        ({"token_ids": [True, 1], "logprobs": {"token_logprobs": [0, 0]}}, "no token ids"),
        ({"token_ids": [float("inf"), 1], "logprobs": {"token_logprobs": [0, 0]}}, "no token ids"),
        ({"token_ids": [5, 1], "logprobs": {"token_logprobs": [-(10**400), 0]}}, "no token ids"),
        ({"token_ids": [], "logprobs": {"token_logprobs": []}}, "0 tokens"),
        ({"token_ids": [5] * 5, "logprobs": {"token_logprobs": [-1.0] * 5}}, "5 tokens where"),
        ({"token_ids": [5, 1], "logprobs": {"token_logprobs": [-1.0]}}, "1 log-probabilities"),
        ({"token_ids": [118, 1], "logprobs": {"token_logprobs": [-1.0, 0.0]}}, "vocabulary"),
        ({"token_ids": [5, 1], "logprobs": {"token_logprobs": [0.5, 0.0]}}, "above 0"),
        ({"token_ids": [5, 1], "logprobs": {"token_logprobs": [float("nan"), 0]}}, "not finite"),
        ({"token_ids": [5], "logprobs": {"token_logprobs": [-1.0]}}, "ends early"),
        ({"token_ids": [1, 5, 1], "logprobs": {"token_logprobs": [0.0] * 3}}, "goes on"),
    ],
)
def test_an_answer_that_cannot_be_is_a_fault_of_the_server(
    two: Fakes, answer: Any, said: str
) -> None:
    address, fake = next(iter(two.items()))
    client = Client(address)
    assert client.ready()
    fake.answer = lambda choice: answer
    if isinstance(answer, bytes):
        fake.complete = lambda body: {}  # type: ignore[method-assign]
        fake.answer = lambda choice: (_ for _ in ()).throw(ValueError)
        said = "no answer"
    with pytest.raises(ServerFault, match=said):
        client.complete([4, 5], DRAW, timeout=9)


def test_what_a_server_says_moves_nothing_on_a_terminal(
    two: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, fake = next(iter(two.items()))
    client = Client(address)
    assert client.ready()
    fake.status["/v1/completions"] = 500
    monkeypatch.setattr(fake_server, "TOLD", "\x1b[2J gone\nand\u202e more " + "x" * 999)
    with pytest.raises(ServerFault) as raised:
        client.complete([4, 5], DRAW, timeout=9)
    said = str(raised.value)
    assert said.isprintable()
    assert "gone and" in said
    assert len(said) <= 300


def test_an_end_by_the_budget_and_one_by_a_token(two: Fakes) -> None:
    address, fake = next(iter(two.items()))
    client = Client(address)
    assert client.ready()
    for ids in ([5, 6, 7, 8], [5, 1]):
        fake.answer = lambda choice, ids=ids: {
            "token_ids": ids,
            "logprobs": {"token_logprobs": [-1.0] * len(ids)},
        }
        assert client.complete([4, 5], DRAW, timeout=9).token_ids == ids


def test_nothing_of_a_step_is_kept_when_it_is_interrupted(two: Fakes, tmp_path: Path) -> None:
    from forkpoint.policy import load_model
    from forkpoint.sampling.base import SampleRequest, SamplingSettings
    from forkpoint.sampling.vllm.open import open_servers
    from forkpoint.types import Problem, Prompt

    config = config_of(two, tmp_path)
    engine = open_servers(load_model(config.model), config)
    prompt = Prompt(problem=Problem(id="0", prompt="x"), token_ids=(4, 5))
    request = SampleRequest(prompt=prompt, serial=0, sample=0)
    settings = SamplingSettings(max_new_tokens=4, temperature=1.0, seed=0, step=1)
    (completion,) = engine.sample([request], settings)
    assert completion.weights_version == 0
    with pytest.raises(Interrupted):
        engine.sample([request], settings, lambda: True)
    engine.close()
    with pytest.raises(Interrupted):
        engine.sample([request], settings)
    assert torch.isfinite(torch.tensor(completion.logprobs)).all()


# ---- what a review broke ------------------------------------------------------------------------


def test_a_body_that_stalls_after_its_header_ends_nothing_but_its_request(
    two: Fakes, tmp_path: Path
) -> None:
    """The connection has forgotten its socket by then, and with it how to break off."""
    address, fake = next(iter(two.items()))
    fake.stalls = True
    started = time.monotonic()
    with pytest.raises(EngineError, match="no vLLM server is left"):
        run({address: fake}, tmp_path, rollout__vllm__stall_s=1.0)
    assert time.monotonic() - started < 30


def test_a_request_that_is_lost_is_given_up_while_others_are_served(
    two: Fakes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (_, lost), *_ = two.items()
    ticking = threading.Event()

    def never() -> None:
        while not ticking.wait(0.1):
            lost.made += 1  # for somebody else

    lost.before = never
    with caplog.at_level(logging.WARNING):
        outcome, _ = run(two, tmp_path, rollout__vllm__request_minutes=0.05, training__steps=1)
    ticking.set()
    assert outcome.state.updates == 1
    assert "is given up" in caplog.text


@pytest.mark.parametrize("answer", [b"[" * 200_000, b"{"])
def test_no_json_is_a_fault_of_the_server(answer: bytes) -> None:
    with pytest.raises(ServerFault, match="no JSON"):
        client_module._json(answer)


def test_counters_that_are_no_numbers_are_no_progress(two: Fakes) -> None:
    address, fake = next(iter(two.items()))
    fake.made = float("nan")  # type: ignore[assignment]
    with pytest.raises(ServerFault, match="metrics cannot be read"):
        Client(address).progress(5)


def test_a_whole_answer_has_one_deadline(two: Fakes) -> None:
    address, fake = next(iter(two.items()))
    client = Client(address)
    assert client.ready()
    fake.resumes.clear()
    started = time.monotonic()
    with pytest.raises(ServerFault, match="no answer"):
        client.complete([4, 5], DRAW, timeout=0.5)
    assert time.monotonic() - started < 5


def test_a_server_that_cannot_load_is_not_left_paused(two: Fakes) -> None:
    address, fake = next(iter(two.items()))
    fake.status["/collective_rpc"] = 500
    with pytest.raises(ServerFault, match="collective_rpc gave 500"):
        Client(address).load(Path("/nowhere"), 5)
    assert fake.asked[-3:] == ["/pause", "/collective_rpc", "/resume"]


def test_a_key_that_cannot_be_sent_is_not_shown(
    two: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = next(iter(two.items()))
    monkeypatch.setenv("FORKPOINT_VLLM_KEY", "sk-se\ncret")
    with pytest.raises(ConfigError) as caught:
        Client(address).ready()
    assert "cret" not in str(caught.value)
    monkeypatch.setenv("FORKPOINT_VLLM_KEY", "fine\n")
    assert Client(address).ready()


def test_the_bound_is_that_of_the_coarser_type() -> None:
    given: dict[str, Any] = {"tokenizer": None, "eos_ids": (1,), "vocabulary": 9, "slots": 1}
    given |= {"stall_s": 1.0, "request_s": 1.0}
    client = Client("http://node7:1")
    probes = {client.address: Probe(prompt=(1,), sampled=Sampled([2], [-1.0]))}
    for dtype, policy_dtype in (("float32", "bfloat16"), ("bfloat16", "float32")):
        engine = VllmEngine([client], dtype=dtype, policy_dtype=policy_dtype, **given)
        found = engine.compare(probes, {client.address: np.array([-1.01])})
        assert found["mismatch/probe_mean_nats"] == pytest.approx(0.01)
    engine = VllmEngine([client], dtype="float32", policy_dtype="float32", **given)
    with pytest.raises(EngineError, match="nats from the trainer"):
        engine.compare(probes, {client.address: np.array([-1.01])})


def test_a_stop_is_obeyed_while_servers_load(two: Fakes, tmp_path: Path) -> None:
    for fake in two.values():
        fake.slow = 30.0
    started = time.monotonic()
    outcome = train(
        config_of(two, tmp_path), tmp_path / "run",
        should_stop=lambda: time.monotonic() - started > 1,
    )  # fmt: skip
    assert outcome.stopped
    assert time.monotonic() - started < 20
    assert not list((tmp_path / "weights").iterdir())


def test_a_folder_lives_as_long_as_its_run(tmp_path: Path) -> None:
    alive = OwnFolder(tmp_path, "forkpoint-w-")
    users = tmp_path / "forkpoint-w-mine"
    users.mkdir()
    left = tmp_path / "forkpoint-w-left"
    left.mkdir()
    (left / ".lock").touch()  # of a run that was killed: nobody holds it
    other = OwnFolder(tmp_path, "forkpoint-w-")
    assert alive.path.is_dir()
    assert users.is_dir()
    assert not left.exists()
    for folder in (alive, other):
        folder.close()
        folder.close()
    assert [path.name for path in tmp_path.iterdir()] == ["forkpoint-w-mine"]


def test_a_server_ends_when_the_runs_group_of_processes_is_killed(tmp_path: Path) -> None:
    """As torchrun does it, and a terminal that is closed."""
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from forkpoint.sampling.vllm.client import Client\n"
        "from forkpoint.sampling.vllm.launch import Launched\n"
        f"home = Path({str(tmp_path)!r})\n"
        'sleeper = \'import os, sys, time; open(sys.argv[1], "w").write(str(os.getpid())); '
        "time.sleep(600)'\n"
        "command = [sys.executable, '-c', sleeper, str(home / 'pid')]\n"
        "server = Launched(client=Client(f'unix:{home}/s'), log=home / 'log', command=command,\n"
        "    environment={})\n"
        "server.start(home)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    pid = tmp_path / "pid"
    patience = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < patience:
        time.sleep(0.05)
    server = int(pid.read_text())
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while Path(f"/proc/{server}").exists() and time.monotonic() < patience:
        time.sleep(0.1)
    assert not Path(f"/proc/{server}").exists()
