"""The completions of one call, which servers draw in whatever order they come to them."""

import threading
from collections import Counter, deque

from forkpoint.sampling.vllm.client import Client
from forkpoint.types import Completion


class Job:
    """Which completions of a call are there, under way and missing; for many threads."""

    def __init__(self, count: int) -> None:
        self._count, self._queue = count, deque(range(count))
        self._done: dict[int, tuple[str, Completion]] = {}
        self._lock = threading.Lock()
        self.under_way: Counter[str] = Counter()
        """Server -> how many it is asked for now."""
        self.redrawn = 0
        """Completions that another server than the first one asked has made, or will."""
        self.error: Exception | None = None

    @property
    def missing(self) -> int:
        return self._count - len(self._done)

    def take(self, client: Client) -> int | None:
        """The next one for a server to draw; None: there is none at present."""
        with self._lock:
            if not self._queue:
                return None
            self.under_way[client.address] += 1
            return self._queue.popleft()

    def give_back(self, index: int, client: Client) -> None:
        """A server has not drawn it."""
        with self._lock:
            self.under_way[client.address] -= 1
            self.redrawn += 1
            self._queue.appendleft(index)

    def put(self, index: int, client: Client, completion: Completion) -> None:
        with self._lock:
            self.under_way[client.address] -= 1
            self._done[index] = client.address, completion

    def made_by(self, client: Client) -> list[int]:
        with self._lock:
            return [i for i, (address, _) in self._done.items() if address == client.address]

    def drop(self, client: Client) -> None:
        """What a server has made is to be drawn again."""
        for index in self.made_by(client):
            with self._lock:
                del self._done[index]
                self.redrawn += 1
                self._queue.append(index)

    def completions(self) -> list[Completion]:
        return [self._done[i][1] for i in range(self._count)]
