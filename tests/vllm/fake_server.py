"""A server that speaks vLLM's routes and samples with transformers; it can be told to misbehave."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from forkpoint.entropy.logits import log_probs

TOLD = "so it was told"
"""What a server says that gives another status than 200."""


class FakeServer:
    """State of one server, changed by requests and by tests."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.model = read(base)
        self.loaded: list[Path] = []
        """Folders whose weights it was told to load, in order."""
        self.completions = 0
        self.made = 0
        """Tokens."""
        self.before: Callable[[], None] = lambda: None
        """Called before each completion that a run trains on."""
        self.answer: Callable[[dict[str, Any]], Any] = lambda choice: choice
        """Made of what it would answer."""
        self.status: dict[str, int] = {}
        """Route -> the status it gives."""
        self.asked: list[str] = []
        """Routes, in order."""
        self.stalls = False
        """Whether it sends the header of a completion and then nothing."""
        self.slow = 0.0
        """Seconds that loading takes."""
        self.key: str | None = None
        self.reloads = True
        self.lock = threading.Lock()
        self.resumes = threading.Event()
        self.resumes.set()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        self.resumes.wait(60)  # a server that hangs does so here
        ids = list(body["prompt"])
        if "prompt_logprobs" in body:
            logp_LV = self.logprobs(ids, 1.0)
            places = [{str(t): {"logprob": float(logp_LV[i, t])}} for i, t in enumerate(ids[1:])]
            return {"token_ids": [0], "prompt_logprobs": [None, *places]}
        if len(ids) < 16:
            self.completions += 1
            self.before()
        generator = torch.Generator().manual_seed(body["seed"])
        tokens, logprobs = [], []
        while len(tokens) < body["max_tokens"]:
            logp_V = self.logprobs(ids + tokens, body["temperature"])[-1]
            token = int(torch.multinomial(logp_V.exp(), 1, generator=generator))
            tokens.append(token)
            logprobs.append(float(logp_V[token]))
            self.made += 1
            if token in body["stop_token_ids"]:
                break
        return {"token_ids": tokens, "logprobs": {"token_logprobs": logprobs}}

    @torch.no_grad()
    def logprobs(self, ids: list[int], temperature: float) -> torch.Tensor:
        with self.lock:
            logits_LV = self.model(torch.tensor([ids]), use_cache=False).logits[0]
        return log_probs(logits_LV, temperature)

    def load(self, folder: Path) -> None:
        time.sleep(self.slow)
        self.loaded.append(folder)
        if self.reloads:
            self.model = read(folder)


ONE_AT_A_TIME = threading.Lock()
"""Loading a model changes what is global to all threads for a moment."""


def read(folder: Path) -> Any:
    with ONE_AT_A_TIME:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer

    def do_GET(self) -> None:
        self._respond()

    def do_POST(self) -> None:
        self._respond()

    def _respond(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size) or b"{}")
        self.fake.asked.append(self.path)
        status = self.fake.status.get(self.path, 200)
        if self.fake.key and self.headers.get("Authorization") != f"Bearer {self.fake.key}":
            status = 401
        answer: Any = TOLD.encode()
        if status == 200:
            answer = self._answer(body)
        text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        if self.fake.stalls and self.path == "/v1/completions" and len(body["prompt"]) < 16:
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            time.sleep(60)
        self.end_headers()
        with suppress(OSError):  # the other side has given up
            self.wfile.write(text)

    def _answer(self, body: dict[str, Any]) -> Any:
        fake = self.fake
        if self.path == "/v1/models":
            return {"data": [{"id": "policy"}]}
        if self.path == "/metrics":
            return f'vllm:generation_tokens_total{{engine="0"}} {fake.made}\n'.encode()
        if self.path == "/v1/completions":
            return {"choices": [fake.answer(fake.complete(body))]}
        if self.path == "/collective_rpc":
            fake.load(Path(body["kwargs"]["weights_path"]))
        return {}

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(base: Path) -> Iterator[tuple[str, FakeServer]]:
    """Its address and its state, as long as it runs."""
    fake = FakeServer(base)
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fake
    finally:
        fake.resumes.set()
        server.shutdown()
        server.server_close()
        thread.join()
