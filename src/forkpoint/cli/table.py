"""The live table of a run: a line a step, and what is being done beneath it on a terminal."""

import time
from collections.abc import Mapping, Sequence

from forkpoint.cli.terminal import SafeConsole
from forkpoint.runs.metrics_log import evaluations

COLUMNS = {
    "step": 6, "reward": 6, "groups": 6, "H mean": 6, "H p80": 6, "kept": 5, "length": 6,
    "tok/s": 5, "ETA": 5, "held-out": 17,
}  # fmt: skip
"""Name -> width; with single spaces between them less than 80, so that no line wraps."""


class LiveTable:
    """An ``Observer`` of ``training.loop`` that prints; entropies in nats, lengths in tokens."""

    def __init__(self, console: SafeConsole, steps: int, title: str) -> None:
        self._console, self._steps, self._title = console, steps, title
        self.note = console.note
        self._started: float | None = None
        self._first_step = 0
        self._status = console.status("") if console.is_terminal else None

    def __enter__(self) -> "LiveTable":
        self._console.title(self._title)
        self._console.print(_line(list(COLUMNS)), style="dim", highlight=False)
        if self._status:
            self._status.start()
            self._say("starting")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._status:
            self._status.stop()

    def step(self, metrics: dict[str, float]) -> None:
        """Print a step's line."""
        step = int(metrics["step"])
        texts = _texts(metrics, f"{step}/{self._steps}", self._eta(step))
        self._console.print(_line(texts), highlight=False, markup=False)
        self._say(f"step {min(step + 1, self._steps)} of {self._steps}: sampling and training")

    def _say(self, text: str) -> None:
        if self._status:
            self._status.update(f"[dim]{text}[/dim]")

    def _eta(self, step: int) -> str:
        """Time to the last step at the mean pace since the first line."""
        now = time.perf_counter()
        if self._started is None:
            self._started, self._first_step = now, step
            return "-"
        pace = (now - self._started) / max(1, step - self._first_step)
        seconds = round(pace * (self._steps - step))
        return f"{seconds // 60}:{seconds % 60:02d}"


def _texts(metrics: Mapping[str, float], step: str, eta: str) -> list[str]:
    """The cells of a step's line; tokens per second are of the whole step, training included."""

    def cell(pattern: str, *names: str) -> str:
        values = [metrics.get(name) for name in names]
        known = all(value is not None and value == value for value in values)
        return pattern.format(*values) if known else "-"

    seconds = metrics.get("time/step_s")
    speed = metrics.get("completion/tokens", 0.0) / seconds if seconds else 0.0
    held_out = [
        f"{100 * one.accuracy.value:.1f}%{one.accuracy.ends('{:.1f}', 100)}".replace(", ", ",")
        for one in evaluations([dict(metrics)])
    ]
    return [
        step,
        cell("{:.3f}", "reward/mean"),
        cell("{:.0f}/{:.0f}", "reward/accepted_groups", "reward/sampled_groups"),
        cell("{:.3f}", "entropy/mean"),
        cell("{:.3f}", "entropy/p80"),
        cell("{:.0%}", "selection/kept_fraction"),
        cell("{:.1f}", "completion/length_mean"),
        f"{speed:.0f}" if speed else "-",
        eta,
        held_out[0] if held_out else "",
    ]


def _line(texts: Sequence[str]) -> str:
    return " ".join(t.rjust(w) for t, w in zip(texts, COLUMNS.values(), strict=True)).rstrip()
