"""Word clouds whose font sizes mean something: proportional to mean entropy, as in the paper.

Words are placed largest first along a spiral, each where its box touches no other.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

SMALLEST = 0.12
"""Of the largest font: words of hardly any entropy could not be read otherwise."""

GAP = 0.08
"""Around a word, in font sizes."""


class Box(NamedTuple):
    """Lower left corner and size."""

    x: float
    y: float
    width: float
    height: float

    def touches(self, other: "Box") -> bool:
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )


def sizes(means: Sequence[float]) -> list[float]:
    """Font sizes: mean entropy over the highest one, ``SMALLEST`` at least."""
    top = max(means, default=0.0)
    return [max(SMALLEST, mean / top if top else 1.0) for mean in means]


def shown(text: str) -> str:
    """Spaces around a word are not drawn; what is nothing else is drawn as its escape."""
    word = text.strip()
    if not word:
        return text.replace(" ", "␣") if set(text) == {" "} else repr(text)[1:-1]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in word)


def place(shapes: Sequence[tuple[float, float, float]]) -> list[Box]:
    """A box for each (width, height, font size), largest fonts first, none touching another."""
    boxes: dict[int, Box] = {}
    for index in sorted(range(len(shapes)), key=lambda i: (-shapes[i][2], i)):
        width, height, size = shapes[index]
        gap = GAP * size
        for x, y in _spiral(step=0.25 * size):
            around = Box(
                x - width / 2 - gap, y - height / 2 - gap, width + 2 * gap, height + 2 * gap
            )
            if not any(around.touches(other) for other in boxes.values()):
                boxes[index] = Box(around.x + gap, around.y + gap, width, height)
                break
    return [boxes[index] for index in range(len(shapes))]


def _spiral(step: float) -> Iterator[tuple[float, float]]:
    """Points outwards from the middle, ``step`` apart, wider than high."""
    angle = 0.0
    while True:
        radius = step * angle / (2 * math.pi)
        yield 1.5 * radius * math.cos(angle), radius * math.sin(angle)
        angle += step / max(radius, step)
