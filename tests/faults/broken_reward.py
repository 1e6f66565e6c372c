"""A reward function with a bug."""

from typing import Any


def broken(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [1 / 0 for _ in completions]
