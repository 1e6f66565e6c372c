"""Words packed into a cloud, larger where their value is higher; the same words, the same cloud."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from forkpoint.figures.render import INK, data, finish, says
from forkpoint.figures.text import visible

if TYPE_CHECKING:
    import altair as alt

WIDTH = 460
SMALLEST, LARGEST = 9.0, 46.0
"""Pixels; a word whose size would be below the smallest is drawn at it."""
FILL = 0.5
"""Share of a canvas of ``WIDTH`` by ``ASPECT * WIDTH`` that the words should cover."""
ASPECT = 0.62
GAP = 3.0
MOST_CHARACTERS = 24


@dataclass(frozen=True, slots=True)
class CloudWord:
    """A word, what decides its size (0 or more), and what the pointer is told."""

    text: str
    value: float
    title: str


@dataclass(frozen=True, slots=True)
class PlacedWord:
    """A word and its rectangle in pixels, around (x, y)."""

    word: CloudWord
    text: str
    size: float
    x: float
    y: float
    width: float
    height: float


def cloud(words: Sequence[CloudWord], label: str) -> "alt.LayerChart":
    """The words as text, each in a rectangle of its own."""
    import altair as alt

    placed = pack(words)
    top = min(p.y - p.height / 2 for p in placed)
    height = math.ceil(max(p.y + p.height / 2 for p in placed) - top)
    rows = [
        {"x": p.x, "y": top - p.y, "size": p.size, "text": p.text, "title": p.word.title}
        for p in placed
    ]
    return finish(
        [
            alt.Chart(data(rows), name="cloud")
            .mark_text(baseline="middle", color=INK, fontWeight=500, aria=True)
            .encode(
                x=alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-WIDTH / 2, WIDTH / 2])),
                y=alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[-height, 0])),
                size=alt.Size("size:Q", scale=None),
                text=alt.Text("text:N"),
                description=says("title"),
            )
        ],
        (WIDTH, height),
        (0, 0, 0, 0),
        label,
    )


def shown(text: str) -> str:
    """A token's text in one line, with its white space to be seen."""
    return visible(text, newline="↵").replace(" ", "␣")


def pack(words: Sequence[CloudWord]) -> list[PlacedWord]:
    """Each word, largest first, at the free place nearest to the middle.

    Size is LARGEST_FITTING * value / highest value, and at least ``SMALLEST``.
    """
    ordered = sorted(words, key=lambda word: -word.value)
    sizes = _sizes(ordered)
    boxes = np.zeros((0, 4))
    placed = []
    for word, size in zip(ordered, sizes, strict=True):
        text = _short(word.text)
        width, height = text_width(text) * size + GAP, 1.12 * size
        x, y = _free_place(boxes, width, height)
        boxes = np.vstack([boxes, [x, y, width, height]])
        placed.append(PlacedWord(word, text, size, x, y, width, height))
    return placed


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def _sizes(words: Sequence[CloudWord]) -> list[float]:
    """The largest sizes that cover no more than ``FILL`` of the canvas and fit its width."""
    highest = max((word.value for word in words), default=0.0)
    shares = [word.value / highest if highest > 0 else 0.0 for word in words]
    widths = [text_width(_short(word.text)) for word in words]
    largest = LARGEST
    while largest > SMALLEST:
        sizes = [max(SMALLEST, largest * share) for share in shares]
        area = sum(1.12 * s * (w * s + GAP) for s, w in zip(sizes, widths, strict=True))
        fits = all(w * s + GAP <= WIDTH for s, w in zip(sizes, widths, strict=True))
        if fits and area <= FILL * ASPECT * WIDTH**2:
            return sizes
        largest *= 0.95
    return [SMALLEST] * len(words)


def _free_place(boxes: np.ndarray, width: float, height: float) -> tuple[float, float]:
    """The first point of the spiral where a box of this size touches no other."""
    points = _spiral()
    points = points[np.abs(points[:, 0]) + width / 2 <= WIDTH / 2]
    for start in range(0, len(points), 512):
        some = points[start : start + 512]
        apart_x = np.abs(some[:, None, 0] - boxes[:, 0]) >= (boxes[:, 2] + width) / 2
        apart_y = np.abs(some[:, None, 1] - boxes[:, 1]) >= (boxes[:, 3] + height) / 2
        free = (apart_x | apart_y).all(axis=1)
        if free.any():
            x, y = some[int(free.argmax())]
            return float(x), float(y)
    return 0.0, float((boxes[:, 1] + boxes[:, 3] / 2).max()) + height / 2


@cache
def _spiral() -> np.ndarray:
    """[N, 2] pixels along r = a * angle, flattened to the canvas, some 2 pixels apart."""
    steps = np.arange(24_000)
    angle = np.sqrt(steps) * 1.1
    radius = 1.9 * angle
    return np.stack([radius * np.cos(angle), ASPECT * radius * np.sin(angle)], axis=1)


WIDTHS = (
    ("iljI.,:;'|! ", 0.34),
    ('tfr()[]`"/\\-', 0.45),
    ("mMW@%—…", 1.0),
    ("wOQ&#+<>=~^␣↵", 0.86),
)
"""Characters by their width in the widest of the usual sans-serif fonts, in units of its size."""


def text_width(text: str) -> float:
    """At most the width of a text in a sans-serif font, in units of its size."""
    return max(0.34, sum(_character_width(c) for c in text))


def _character_width(character: str) -> float:
    if unicodedata.combining(character):
        return 0.0
    for characters, width in WIDTHS:
        if character in characters:
            return width
    if not character.isascii():
        return 1.05 if unicodedata.east_asian_width(character) in "WF" else 0.9
    return 0.79 if character.isupper() else 0.64
