"""The live table of a run: a line a step, and what is being done beneath it on a terminal."""

import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from forkpoint.cli.options import note, title

COLUMNS = {
    "step": 6, "reward": 6, "groups": 6, "H mean": 6, "H p80": 6, "kept": 5, "length": 6,
    "tok/s": 5, "ETA": 5, "held-out": 17,
}  # fmt: skip
"""Name -> width; with single spaces between them less than 80, so that no line wraps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
    step: str
    metrics: dict[str, Any]
    eta: str

    def texts(self) -> tuple[str, ...]:
        m = self.metrics
        return (
            self.step,
            _number(m.get("reward/mean"), "{:.3f}"),
            _groups(m),
            _number(m.get("entropy/mean"), "{:.3f}"),
            _number(m.get("entropy/p80"), "{:.3f}"),
            _number(_percent(m.get("selection/kept_fraction")), "{:.0f}%"),
            _number(m.get("completion/length_mean"), "{:.1f}"),
            _number(_rate(m), "{:.0f}"),
            self.eta,
            _accuracy(m),
        )


class LiveTable:
    """An ``Observer`` that prints; entropies are in nats, lengths in tokens."""

    def __init__(self, console: Console, steps: int, title: str) -> None:
        self._console, self._steps, self._title = console, steps, title
        self._started: float | None = None
        self._first_step = 0
        self._status = console.status("") if console.is_terminal else None

    def __enter__(self) -> "LiveTable":
        title(self._console, self._title)
        self._console.print(_line(tuple(COLUMNS)), style="dim", highlight=False)
        if self._status:
            self._status.start()
            self._say("starting")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._status:
            self._status.stop()

    def note(self, text: str) -> None:
        """See ``training.loop.Observer``."""
        note(self._console, text)

    def step(self, metrics: dict[str, float]) -> None:
        """See ``training.loop.Observer``."""
        step = int(metrics["step"])
        cells = _Cells(step=f"{step}/{self._steps}", metrics=metrics, eta=self._eta(step))
        self._console.print(_line(cells.texts()), highlight=False, markup=False)
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


def _line(texts: tuple[str, ...]) -> str:
    return " ".join(t.rjust(w) for t, w in zip(texts, COLUMNS.values(), strict=True)).rstrip()


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None or value != value else pattern.format(value)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _groups(metrics: dict[str, Any]) -> str:
    """Accepted of sampled groups."""
    if "reward/accepted_groups" not in metrics:
        return "-"
    return f"{metrics['reward/accepted_groups']:.0f}/{metrics['reward/sampled_groups']:.0f}"


def _rate(metrics: dict[str, Any]) -> float | None:
    """Completion tokens per second of the whole step: sampled, scored and trained on."""
    tokens, seconds = metrics.get("completion/tokens"), metrics.get("time/step_s")
    return tokens / seconds if tokens and seconds else None


def _accuracy(metrics: dict[str, Any]) -> str:
    if "eval/accuracy" not in metrics:
        return ""
    value, low, high = (100 * metrics[f"eval/accuracy{s}"] for s in ("", "_low", "_high"))
    return f"{value:.1f}% [{low:.1f},{high:.1f}]"
