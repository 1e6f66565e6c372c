"""The console that every command prints to."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from forkpoint.cli.terminal import visible


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
