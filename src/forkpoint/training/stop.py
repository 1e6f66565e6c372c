"""Stopping on request: SIGTERM and Ctrl-C end a run with everything saved."""

import signal
from types import FrameType
from typing import Any


class StopFlag:
    """Set by the first SIGTERM or SIGINT inside the ``with``; the second one acts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 + signal, as shells report it: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + (self.signal or 0)

    def __enter__(self) -> "StopFlag":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
