"""A reward that tells answers apart which were cut off after a few tokens."""

import zlib
from collections.abc import Sequence
from typing import Any


def some_number(prompts: Sequence[Any], completions: Sequence[str], **_: Any) -> list[float]:
    """Of each text a number in [0, 1], the same every time."""
    return [zlib.crc32(text.encode()) / 2**32 for text in completions]
