"""SVG as escaped text: elements, scales and round ticks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from markupsafe import Markup, escape

SERIES_STYLES = 6
"""Colours and dashes that report.css has; a seventh run gets the first ones again."""


class Axis(Protocol):
    """A map from values in [low, high] to pixels [start, end]."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    def __call__(self, value: float) -> float: ...


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from [low, high] to pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class SymlogScale:
    """Linear within ``linear`` of zero, where ``linear`` is as long as a decade is beyond it."""

    low: float
    high: float
    start: float
    end: float
    linear: float

    def __call__(self, value: float) -> float:
        ends = symlog(self.low, self.linear), symlog(self.high, self.linear)
        return Scale(*ends, self.start, self.end)(symlog(value, self.linear))


def symlog(value: float, linear: float) -> float:
    """v / linear near zero, sign(v) (1 + log10(|v| / linear)) beyond; continuous, increasing."""
    size = abs(value) / linear
    return math.copysign(size if size <= 1 else 1 + math.log10(size), value)


def symlog_ticks(low: float, high: float, linear: float) -> list[float]:
    """Zero and the powers of ten times ``linear`` in [low, high]."""
    reach = max(abs(low), abs(high))
    powers = []
    while (size := linear * 10.0 ** len(powers)) <= reach * (1 + 1e-9):
        powers.append(size)
    return [v for v in (*(-p for p in reversed(powers)), 0.0, *powers) if low <= v <= high]


def element(tag: str, *children: str | Markup, **attributes: object) -> Markup:
    """An SVG element with escaped text. Attributes: ``class_`` is ``class``, ``_`` is ``-``."""
    names = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _attribute(value))
        for name, value in attributes.items()
    )
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{}{}>{}</{}>").format(Markup(tag), names, inside, Markup(tag))


def _attribute(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def drawing(width: float, height: float, label: str, *children: Markup, css: str = "") -> Markup:
    """A chart that scales with its column, with a sentence for screen readers."""
    return element(
        "svg",
        *children,
        class_=f"chart {css}".strip(),
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
    )


def path(points: Sequence[tuple[float, float]]) -> str:
    """The ``d`` of a line through pixels."""
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round values in [low, high], at most ``most`` of them, with steps of 1, 2 or 5 times 10^k."""
    if not high > low:
        return [low]
    exponent = math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20, 50):
        step = factor * 10.0**exponent
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [round(i * step, 12) for i in range(first, last + 1)]
    return [low]


def tick_labels(values: Sequence[float], *, share: bool = False) -> list[str]:
    """The ticks with as many decimals as all of them need; shares in percent."""
    shown = [100 * v if share else v for v in values]
    decimals = next(d for d in range(13) if all(abs(v - round(v, d)) < 1e-9 for v in shown))
    return [f"{v:,.{decimals}f}" + ("\u00a0%" if share else "") for v in shown]


def power_label(value: float) -> str:
    """A power of ten as people write it: ``10⁻⁴``, ``−0.1``, ``1``."""
    if value == 0 or abs(value) >= 0.01:
        return f"{value:g}".replace("-", "−")
    exponent = round(math.log10(abs(value)))
    sign = "−" if value < 0 else ""
    return sign + "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def series_style(index: int) -> str:
    """The class of a run's colour and dash."""
    return f"s{index % SERIES_STYLES}"
