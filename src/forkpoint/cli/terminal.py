"""How every command prints, and how it stops.

Whatever comes from data, a model, a verifier or a file is hostile on a terminal.
"""

import signal
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from forkpoint.errors import Interrupted

UNSAFE = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
"""Unicode categories of controls (ESC, CSI), formats (bidirectional marks, zero width), lone
surrogates, private use and line separators: they move, hide or run something, or are no text."""


def visible(text: str, *, newlines: bool = False) -> str:
    r"""The text with ``\x1b``, ``\u202e`` and so on in place of what a terminal would obey.

    Args:
        newlines: keep line feeds; else they are ``\n``, so that one line stays one line.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in UNSAFE and not (newlines and character == "\n")
        else character
        for character in text
    )


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
        return 128 + (self.signal or signal.SIGTERM)  # another process of the run was stopped

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


class SafeConsole(Console):
    """rich's console; its own colours and cursor moves pass, those in a text become visible."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Every text that is printed goes through here, on its own or in a table."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(visible(segment.text, newlines=True), segment.style)

    def say(self, *lines: object, style: str = "none") -> None:
        """Lines as they are: nothing in them is markup or highlighted."""
        for line in lines:
            self.print(str(line), style=style, highlight=False, markup=False)

    def title(self, text: object) -> None:
        """A heading, after an empty line."""
        self.say(f"\n{visible(str(text))}", style="bold")

    def note(self, text: str) -> None:
        """A line about how a command goes; whatever it quotes, it stays one line."""
        self.say(f"  {visible(text)}", style="dim")

    @contextmanager
    def stoppable(self, kept: str) -> Iterator[StopFlag]:
        """Let Ctrl-C or SIGTERM end the body at its next safe point, and exit as shells expect.

        Args:
            kept: what the user is told then: what is kept and how to go on.

        Raises:
            SystemExit: a signal ended the body.
        """
        with StopFlag() as stop:
            try:
                yield stop
            except Interrupted as stopped:
                if stop.signal is None:
                    raise
                self.note(f"{stopped}; {kept}")
                raise SystemExit(stop.exit_code) from None


def table(*columns: str, left: tuple[str, ...] = ()) -> Table:
    """An empty table whose columns stand on the right but for those in ``left``."""
    made: Any = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        made.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return made
