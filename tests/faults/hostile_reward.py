"""A reward function whose error would take over a terminal."""

from typing import Any

HOSTILE = "\x1b]0;owned\x07 \x1b[2J \x9b31m \rover \x00 \u202edrow \u2028 [/bold] [red] 100%"
"""Sets the title, clears the screen, colours, overwrites the line, turns the text around; and what
rich takes for its markup."""


def hostile(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    raise ValueError(HOSTILE)
