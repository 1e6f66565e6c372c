"""Text and numbers as a page or a figure shows them. Text that a model wrote is hostile."""

import re
import unicodedata

JOINERS = "\u200c\u200d"
"""Zero-width joiners stay: emoji and Persian need them, and they move nothing."""


def visible(text: str, *, newline: str = "\n") -> str:
    """The text with every character that is invisible, or that moves others, shown as a sign.

    C0 controls become control pictures (NUL is ``␀``), a lone surrogate ``�``, other controls,
    bidirectional marks, zero-width characters, U+2028/2029 and what is no character, some of which
    no page may hold (U+FFFF), their number (``⟨U+202E⟩``).

    Args:
        newline: what a line feed becomes.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(newline if c == "\n" else _visible_character(c) for c in text)


def _visible_character(character: str) -> str:
    code = ord(character)
    category = unicodedata.category(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if category == "Cs":
        return "\ufffd"
    if category in ("Cc", "Cf", "Cn", "Zl", "Zp") and character not in JOINERS:
        return f"⟨U+{code:04X}⟩"
    return character


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits, with an exponent only where they need it: ``0.0451``, ``17655``."""
    if value is None:
        return "–"
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.{digits - 1}e}")
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def three_figures(value: float) -> str:
    """Like ``number``, with the zeros that keep a column of values in line: ``0.670``."""
    text = number(value)
    return f"{value:#.3g}".rstrip(".") if value and "e" not in text and abs(value) < 100 else text


def percent(value: float | None) -> str:
    """``18.6 %``."""
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"


def minus(text: str) -> str:
    """With the sign of numbers instead of the hyphen."""
    return text.replace("-", "−")


def ends(low: float, high: float) -> str:
    """An interval of shares in percent: ``[13.6, 23.6]``."""
    return minus(f"[{100 * low:.1f}, {100 * high:.1f}]")
