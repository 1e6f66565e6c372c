"""One vLLM server, as its HTTP routes are used here: token ids go in, token ids come out."""

import json
import math
import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from forkpoint.errors import ConfigError, EngineError

KEY_VARIABLE = "FORKPOINT_VLLM_KEY"
"""Where the key of servers that were started with ``--api-key`` is read from."""
LARGEST_ANSWER = 2**28
"""Bytes; no completion is longer."""
COUNTERS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")
"""Lines of /metrics that grow while a server works."""
SHORT_S = 30.0
"""For an answer that needs no sampling."""


class ServerFault(Exception):
    """What is wrong with a server, in one line; its work goes elsewhere."""

    def __init__(self, why: str) -> None:
        super().__init__(_one_line(why))  # it may quote the server, and ends on a terminal


class Sampled(NamedTuple):
    """What a server made of a prompt."""

    token_ids: list[int]
    """The end-of-sequence token included."""
    logprobs: list[float]
    """ln p of each at the sampling temperature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How one completion is drawn."""

    max_tokens: int
    temperature: float
    seed: int
    eos_ids: tuple[int, ...]
    vocabulary: int
    """No token id is as large as this."""


class _UnixConnection(HTTPConnection):
    """HTTP over a socket that is a file, which only its owner can open."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=SHORT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """Talks to one server."""

    def __init__(self, address: str) -> None:
        """
        Args:
            address: ``http://host:port``, ``https://..`` or ``unix:/path/of.sock``.

        Raises:
            ConfigError: it is none of these.
        """
        self.address = address
        try:
            parts = urlsplit(address)
            _ = parts.port, (parts.hostname or "").encode("idna")
            plain = address.isascii() and address.isprintable() and " " not in address
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and plain
        except ValueError:  # a port that is none, a host too long
            parts, known = urlsplit(""), False
        if parts.scheme != "unix" and not known:
            raise ConfigError(
                f"rollout.vllm.servers: {address!r} is no address such as http://node7:8000"
            )
        self._parts = parts
        self._prefix = "" if parts.scheme == "unix" else parts.path.rstrip("/")
        self._model = ""
        self._open: set[socket.socket] = set()

    def __repr__(self) -> str:
        return f"vLLM server {self.address}"

    def ready(self) -> bool:
        """Whether it answers; learns the name of its model."""
        try:
            self._call("GET", "/health", timeout=SHORT_S)
            found = _json(self._call("GET", "/v1/models", timeout=SHORT_S))
            self._model = str(found["data"][0]["id"])
        except (ServerFault, KeyError, IndexError, TypeError):
            return False
        return True

    def load(self, folder: Path, timeout: float) -> None:
        """Replace the server's weights by those in a folder that it sees, too.

        Raises:
            ServerFault: it did not, or did not in time.
            EngineError: it has no such route.
        """
        self._call("POST", "/pause", {}, timeout=timeout)
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            self._call("POST", "/collective_rpc", reload, timeout=timeout)
            self._call("POST", "/reset_prefix_cache", {}, timeout=timeout)
        except (ServerFault, EngineError):
            with suppress(ServerFault, EngineError):  # it may have other users
                self._call("POST", "/resume", {}, timeout=SHORT_S)
            raise
        self._call("POST", "/resume", {}, timeout=timeout)

    def complete(self, prompt: Sequence[int], draw: Draw, *, timeout: float) -> Sampled:
        """Draw one completion.

        Raises:
            ServerFault: no answer, or nonsense.
            EngineError: the request is refused.
        """
        answer = self._completion(
            prompt,
            timeout,
            max_tokens=draw.max_tokens,
            temperature=draw.temperature,
            seed=draw.seed,
            logprobs=0,
            ignore_eos=True,  # the run's own end tokens, not those of the server's files
            stop_token_ids=list(draw.eos_ids),
        )
        try:
            ids, logprobs = answer["token_ids"], answer["logprobs"]["token_logprobs"]
            found = Sampled(
                token_ids=[_integer(i) for i in _listed(ids)],
                logprobs=[_real(x) for x in _listed(logprobs)],
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ServerFault(
                f"its answer has no token ids and log-probabilities: {error!r}"
            ) from None
        if fault := _nonsense(found, draw):
            raise ServerFault(f"its answer cannot be: {fault}")
        return found

    def read(self, token_ids: Sequence[int]) -> list[float]:
        """ln p of each given token but the first, at temperature 1: what tells its weights.

        Raises:
            ServerFault: no answer, or nonsense.
        """
        answer = self._completion(
            token_ids, SHORT_S, max_tokens=1, temperature=0.0, prompt_logprobs=0
        )
        try:
            places = zip(token_ids[1:], answer["prompt_logprobs"][1:], strict=True)
            return [_real(place[str(token)]["logprob"]) for token, place in places]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ServerFault(
                f"its answer has no log-probabilities of a prompt: {error!r}"
            ) from None

    def progress(self, timeout: float) -> float:
        """Tokens it has read and made since it started.

        Raises:
            ServerFault: no answer.
            EngineError: it does not count them.
        """
        lines = self._call("GET", "/metrics", timeout=timeout).decode(errors="replace").splitlines()
        numbers = [line.rsplit(" ", 1)[-1] for line in lines if line.startswith(COUNTERS)]
        if not numbers:
            raise EngineError(
                f"{self} counts no tokens in its /metrics, by which one that stands still is told "
                "from one that works: start it without --disable-log-stats"
            )
        try:
            total = sum(map(float, numbers))
        except ValueError:
            total = math.nan
        if not math.isfinite(total):
            raise ServerFault("its /metrics cannot be read")
        return total

    def cancel(self) -> None:
        """Break off every request that is under way."""
        for used in list(self._open):
            _shut(used)

    def _completion(self, prompt: Sequence[int], timeout: float, **settings: Any) -> dict[str, Any]:
        body = {
            "model": self._model,
            "prompt": list(prompt),
            "add_special_tokens": False,
            "return_token_ids": True,
            "n": 1,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            **settings,
        }
        answer = _json(self._call("POST", "/v1/completions", body, timeout=timeout))
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not (isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict)):
            raise ServerFault("its answer holds no completion")
        return choices[0]

    def _call(self, verb: str, path: str, body: Any = None, *, timeout: float) -> bytes:
        """What a route answers, all of it within ``timeout`` seconds."""
        headers = {"Content-Type": "application/json"} | _authorization()
        connection, used, deadline = self._connection(), None, None
        try:
            connection.connect()
            used = connection.sock  # the connection forgets it when it has read a header
            used.settimeout(timeout)
            used.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._open.add(used)
            deadline = threading.Timer(
                timeout, _shut, [used]
            )  # a socket's own is one for each read
            deadline.daemon = True
            deadline.start()
            text = None if body is None else json.dumps(body)
            connection.request(verb, self._prefix + path, text, headers)
            with connection.getresponse() as response:
                answer = response.read(LARGEST_ANSWER)
        except (OSError, HTTPException) as error:
            raise ServerFault(f"no answer to {path}: {error or type(error).__name__}") from None
        finally:
            if deadline is not None:
                deadline.cancel()
            if used is not None:
                self._open.discard(used)
            connection.close()
        if response.status != 200:
            raise self._refusal(path, response.status, answer)
        return answer

    def _refusal(self, path: str, status: int, answer: bytes) -> Exception:
        said = _one_line(answer.decode(errors="replace"))
        if status in (401, 403):
            return EngineError(f"{self} wants its key: set the environment variable {KEY_VARIABLE}")
        if status in (404, 405) and not path.startswith("/v1"):
            return EngineError(
                f"{self} cannot be given weights, it has no route {path}: start it with "
                "VLLM_SERVER_DEV_MODE=1 in its environment"
            )
        if status in (400, 404, 413, 422):
            return EngineError(f"{self} refuses a request to {path}: {said}")
        return ServerFault(f"{path} gave {status}: {said}")

    def _connection(self) -> HTTPConnection:
        if self._parts.scheme == "unix":
            return _UnixConnection(self._parts.path)
        kind = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
        return kind(str(self._parts.hostname), self._parts.port, timeout=SHORT_S)


def _one_line(text: str) -> str:
    """The beginning of a text that somebody else wrote, without what a terminal would obey."""
    line = " ".join(text.split())[:300]
    return "".join(c if c.isprintable() else "?" for c in line)


def _authorization() -> dict[str, str]:
    """
    Raises:
        ConfigError: the key cannot be sent; without showing it.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{KEY_VARIABLE} is no key: it has characters that cannot be sent")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _shut(used: socket.socket) -> None:
    """Whoever reads or writes there gets an error."""
    with suppress(OSError):
        used.shutdown(socket.SHUT_RDWR)


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a {type(value).__name__} where a list is wanted")
    return value


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} where an integer is wanted")
    return value


def _real(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{value!r} where a number is wanted")
    return float(value)


def _json(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        raise ServerFault("its answer is no JSON") from None


def _nonsense(found: Sampled, draw: Draw) -> str | None:
    """Why these cannot be the tokens of a completion, or None."""
    ids, logprobs = found
    if not 1 <= len(ids) <= draw.max_tokens:
        return f"{len(ids)} tokens where 1 to {draw.max_tokens} are wanted"
    if len(logprobs) != len(ids):
        return f"{len(ids)} tokens and {len(logprobs)} log-probabilities"
    if not all(0 <= i < draw.vocabulary for i in ids):
        return "a token id beyond the vocabulary"
    if not all(math.isfinite(x) and x <= 1e-3 for x in logprobs):
        return "a log-probability that is not finite, or above 0"
    if len(ids) < draw.max_tokens and ids[-1] not in draw.eos_ids:
        return "it ends early, and not with a token that ends"
    if any(i in draw.eos_ids for i in ids[:-1]):
        return "it goes on after a token that ends"
    return None
