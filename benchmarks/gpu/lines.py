"""A line of JSON a measure, whatever becomes of it, within a budget of time."""

import json
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.device import Device

ERROR_LETTERS = 300


class Skip(Exception):
    """This measure cannot be made here; the text says why."""


class Lines:
    """Makes measures, prints what came of each at once, keeps it.

    Every line has ``stage``, ``measure`` and ``status``: ``ok``; ``wrong`` (a number is above its
    bound, or not finite); ``failed`` (an exception, in ``error``); ``out of memory``, which is a
    result; or ``skipped`` (``reason``).
    """

    def __init__(
        self, device: Device, minutes: float, keep: Callable[[list[dict[str, Any]]], None]
    ) -> None:
        """
        Args:
            minutes: from now on; a measure that will not fit is skipped.
            keep: called with all lines after each.
        """
        self.stage = ""
        self._device = device
        self._deadline = time.monotonic() + 60 * minutes
        self._keep = keep
        self._lines: list[dict[str, Any]] = []

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self._deadline - time.monotonic()

    @property
    def good(self) -> bool:
        """Whether nothing failed and nothing is wrong."""
        return not {line["status"] for line in self._lines} & {"failed", "wrong"}

    def measure(
        self, name: str, call: Callable[[], dict[str, Any]], *, expected_s: float = 0.0
    ) -> None:
        """Make a measure and tell what it found.

        Args:
            call: what comes back is told. ``bounds`` in it maps some of its numbers' names to the
                most they may be.
            expected_s: how long it may take.
        """
        if self.left_s <= 0 or self.left_s < expected_s:
            reason = f"it may take {expected_s:.0f} s and {max(0.0, self.left_s):.0f} s are left"
            self._tell(name, {"status": "skipped", "reason": reason})
            return
        started = time.perf_counter()
        told = _outcome(call)
        self._tell(name, {**told, "whole_s": time.perf_counter() - started})
        self._device.release()

    def guard(self, stage: Callable[[], None]) -> None:
        """Run a whole stage; what goes wrong between its measures is a line, too."""

        def whole() -> dict[str, Any]:
            stage()
            return {}

        told = _outcome(whole)
        if told["status"] != "ok":
            self._tell("between measures", told)

    def _tell(self, name: str, told: dict[str, Any]) -> None:
        line = _writable({"stage": self.stage, "measure": name, **told})
        self._lines.append(line)
        print(json.dumps(line), flush=True)
        self._keep(self._lines)


def _outcome(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a call found, or what became of it."""
    try:
        found = call()
    except Skip as reason:
        return {"status": "skipped", "reason": str(reason)}
    except torch.OutOfMemoryError as error:
        return {"status": "out of memory", "error": _short(error)}
    except Exception as error:
        return {"status": "failed", "error": _short(error)}
    return {"status": _verdict(found), **found}


def _verdict(found: dict[str, Any]) -> str:
    numbers = [value for value in found.values() if isinstance(value, float)]
    bounds = found.get("bounds", {})
    kept = all(found[name] <= most for name, most in bounds.items())
    return "ok" if kept and all(map(math.isfinite, numbers)) else "wrong"


def _short(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".strip()
    return text.split("\n")[0][:ERROR_LETTERS]


def _writable(value: Any) -> Any:
    """Floats to six digits; what JSON has no number for becomes text."""
    if isinstance(value, dict):
        return {key: _writable(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value
