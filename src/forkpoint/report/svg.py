"""SVG as escaped text: elements, scales and round ticks."""

import math
from dataclasses import dataclass

from markupsafe import Markup, escape

SERIES_STYLES = 6
"""Colours and dashes that report.css has; a seventh run gets the first ones again."""


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


def drawing(width: int, height: int, label: str, *children: Markup, css: str = "") -> Markup:
    """A chart that scales with its column, with a sentence for screen readers."""
    return element(
        "svg",
        *children,
        class_=f"chart {css}".strip(),
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=label,
    )


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


def tick_labels(values: list[float], *, share: bool = False) -> list[str]:
    """The ticks with as many decimals as all of them need; shares in percent."""
    shown = [100 * v if share else v for v in values]
    decimals = next(d for d in range(13) if all(abs(v - round(v, d)) < 1e-9 for v in shown))
    return [f"{v:,.{decimals}f}" + ("\u00a0%" if share else "") for v in shown]


def series_style(index: int) -> str:
    """The class of a run's colour and dash."""
    return f"s{index % SERIES_STYLES}"
