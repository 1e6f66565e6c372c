"""How a question becomes a prompt."""

from forkpoint.types import Message


def ask(text: str, *, chat: bool) -> str | tuple[Message, ...]:
    """One user message for the model's chat template, or the plain text."""
    return ({"role": "user", "content": text},) if chat else text
