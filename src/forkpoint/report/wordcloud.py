"""Words packed into a cloud, larger where their value is higher; the same words, the same cloud."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from markupsafe import Markup

from forkpoint.report.svg import drawing, element

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


def word_cloud(words: Sequence[CloudWord], label: str) -> Markup:
    """The words as SVG text. A width is given to each, so that no font can make them overlap."""
    placed = pack(words)
    top = min((p.y - p.height / 2 for p in placed), default=0.0)
    bottom = max((p.y + p.height / 2 for p in placed), default=0.0)
    texts = [_text(p, p.y - top) for p in placed]
    return drawing(WIDTH, math.ceil(bottom - top), label, *texts, css="cloud")


def _text(placed: PlacedWord, y: float) -> Markup:
    """The word with its middle at height y; the group's font size is what the style lets in."""
    text = element(
        "text",
        element("title", placed.word.title),
        placed.text,
        class_="middle",
        x=WIDTH / 2 + placed.x,
        y=y + 0.34 * placed.size,
        textLength=placed.width - GAP,
        lengthAdjust="spacingAndGlyphs",
    )
    return element("g", text, font_size=placed.size)


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


# ---- widths -------------------------------------------------------------------------------------

NARROW, WIDE = frozenset("iljtfrI.,:;'|!()[]{}` "), frozenset("mwMW@%—…")


def text_width(text: str) -> float:
    """About the width of a text in a sans-serif font, in units of its size."""
    return max(0.3, sum(_character_width(c) for c in text))


def _character_width(character: str) -> float:
    if unicodedata.combining(character):
        return 0.0
    if unicodedata.east_asian_width(character) in "WF":
        return 1.0
    if character in NARROW:
        return 0.3
    if character in WIDE:
        return 0.87
    return 0.68 if character.isupper() else 0.55
