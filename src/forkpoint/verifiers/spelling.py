"""Other spellings of one answer, rewritten to those that math-verify reads as they are meant.

math-verify takes ``0.\\overline{3}`` for 0, ``12\\,000`` for 12 times 0, and ``3e6`` for 3 e 6; of
characters beyond ASCII it knows few. Nothing here decides what is right: an answer and its gold are
rewritten alike.
"""

import re
import unicodedata

SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"),
        **dict.fromkeys("°º", r"^\circ "),
        **dict.fromkeys("€£¥", ""),
        **dict(zip("｛｝，（）", (r"\{", r"\}", ",", "(", ")"), strict=True)),
        "²": "^2",
        "³": "^3",
        "½": r"\frac{1}{2}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "∞": r"\infty ",
        "∅": r"\emptyset ",
    }
)
COMMANDS = {
    r"\varnothing": r"\emptyset",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\degree": r"^\circ",
    r"\mathrm{i}": "i",
    r"\text{ percent}": r"\%",
}
COMMAND = re.compile("|".join(rf"{re.escape(name)}(?![A-Za-z])" for name in COMMANDS))
BOLD = re.compile(r"\\(?:mathbf|boldsymbol|underline)\{([\d.,]+)\}")
ROOT = re.compile(r"√\s*(\w+)")
THIN_SPACE = re.compile(r"(?<!\d)[1-9]\d{0,2}(?:(?:\\[,;:! ]|[ ~])\d{3})+(?!\d)")
REPEATING = re.compile(r"(?<![\d,])(\d{0,50})\.(\d{0,50})\\(?:overline|bar)(?:\{(\d{1,50})\}|(\d))")
"""A decimal whose last digits come again and again."""
POWER_OF_TEN = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})")
MIXED = re.compile(r"(-?\d+) (\d+)/(\d+)")


def readable(text: str) -> str:
    """An answer in a spelling that math-verify reads; most answers are unchanged."""
    if not text.isascii():
        text = ROOT.sub(r"\\sqrt{\1}", "".join(map(_ascii, text.translate(SIGNS))))
    text = COMMAND.sub(lambda found: COMMANDS[found[0]], text.strip())
    text = BOLD.sub(r"{\1}", text)
    text = REPEATING.sub(_as_fraction, text)
    text = THIN_SPACE.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    if found := POWER_OF_TEN.fullmatch(text):
        return rf"{found[1]} \times 10^{{{found[2]}}}"
    if found := MIXED.fullmatch(text):
        return rf"{found[1]}\frac{{{found[2]}}}{{{found[3]}}}"
    return text


def _ascii(character: str) -> str:
    """A digit of any script as 0 to 9, a space of any width as one, without what has no width."""
    if character.isascii():
        return character
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    return {"Zs": " ", "Cf": ""}.get(unicodedata.category(character), character)


def _as_fraction(found: re.Match[str]) -> str:
    r"""``0.1\overline{6}`` as ``\frac{15}{90}``: (16 - 1) / 90."""
    whole, fixed, repeated = found[1] or "0", found[2], found[3] or found[4]
    numerator = int(whole + fixed + repeated) - int(whole + fixed)
    denominator = (10 ** len(repeated) - 1) * 10 ** len(fixed)
    return rf"\frac{{{numerator}}}{{{denominator}}}"
