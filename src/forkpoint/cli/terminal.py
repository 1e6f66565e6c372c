"""Text for a terminal: whatever comes from data, a model, a verifier or a file is hostile there."""

import unicodedata

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
