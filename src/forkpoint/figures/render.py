"""From an Altair chart to an SVG for the report's page, or to a file for a paper."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from forkpoint.figures.text import visible
from forkpoint.runs.atomic import write_atomically

if TYPE_CHECKING:
    import altair as alt

COLOURS = {
    "paper": "#fffefa", "ink": "#1c1b18", "soft": "#6a675f", "hair": "#e4e0d4", "bar": "#b5b0a2",
    "s0": "#1f5c99", "s1": "#b4491c", "s2": "#1b7a5e", "s3": "#7d4a9e", "s4": "#8a6d00",
    "s5": "#5d5b56", "h0": "#f6f3ea", "h1": "#fbf0d2", "h2": "#f9e2a9", "h3": "#f5cd75",
    "h4": "#efb24c", "h5": "#e49432", "h6": "#d5772a", "h7": "#a94a17", "h8": "#74290f",
}  # fmt: skip
"""A colour's name, which is a CSS variable of the report, and what it is in a paper."""
DASHES: tuple[list[float], ...] = ([], [5, 3], [1.5, 2.5], [8, 3, 1.5, 3], [10, 4], [3, 2, 3, 5])
"""Of the lines of the series s0 to s5, which differ without colours too."""
SHAPES = ("circle", "square", "diamond", "triangle-up")
"""Of the points of the first six series, of the next six, and so on."""
INK, SOFT, HAIR, PAPER = (f"var(--{name})" for name in ("ink", "soft", "hair", "paper"))
SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", SVG[1:-1])


def series_colour(index: int) -> str:
    """A run's colour; a seventh run gets the first one again."""
    return f"var(--s{index % len(DASHES)})"


STYLE: dict[str, Any] = {
    "view": {"stroke": None},
    "axis": {
        "aria": False,
        "domain": False,
        "ticks": False,
        "gridColor": HAIR,
        "labelColor": SOFT,
        "labelFontSize": 10,
        "labelPadding": 5,
        "titleColor": SOFT,
        "titleFontSize": 10,
        "titleFontWeight": "normal",
    },
    "axisX": {"labelFlush": False, "grid": False, "titlePadding": 6},
    "text": {"aria": False, "fontSize": 10.5},
    **{mark: {"aria": False} for mark in ("line", "area", "rule")},
}
"""What all charts share."""


def finish(
    layers: Sequence[Any],
    size: tuple[float, float],
    margins: tuple[float, float, float, float],
    label: str,
) -> "alt.LayerChart":
    """The layers as a chart of a fixed size.

    Args:
        size: width and height of the whole in pixels.
        margins: of the plot: left, right, top, bottom.
        label: a sentence for screen readers.
    """
    import altair as alt

    left, right, top, bottom = margins
    return alt.LayerChart(
        layer=list(layers),
        width=size[0] - left - right,
        height=size[1] - top - bottom,
        padding={"left": left, "right": right, "top": top, "bottom": bottom},
        autosize="none",
        description=label,
        background="transparent",
        config=STYLE,
    )


def data(rows: Sequence[dict[str, Any]]) -> "alt.Data":
    """Rows as the data of a chart: the only way in for text, which is never an expression here."""
    import altair as alt

    cleaned = [{k: visible(v) if isinstance(v, str) else v for k, v in r.items()} for r in rows]
    return alt.Data(values=tuple(cleaned))  # Altair copies lists, again and again


def says(field: str = "text") -> Any:
    """The encoding of what a mark says of itself under the pointer and to screen readers."""
    import altair as alt

    return alt.Description(f"{field}:N")


def _svg(spec: dict[str, Any]) -> str:
    import vl_convert

    # Without a base URL nothing can be loaded, whatever a chart says.
    return vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])


# ---- the page -----------------------------------------------------------------------------------

KEPT = frozenset(
    {"class", "aria-label", "d", "x", "y", "x2", "y2", "width", "height", "text-anchor"}
)
KEPT |= {"transform", "fill", "opacity", "fill-opacity", "stroke", "stroke-width", "font-size"}
KEPT |= {"stroke-dasharray", "stroke-linejoin", "stroke-opacity", "font-weight"}
"""Attributes of an SVG that the page lets in: no links, no styles, no handlers."""
UNNEEDED = frozenset({("opacity", "1"), ("transform", "translate(0,0)"), ("stroke-width", "0")})
TAGS = frozenset(
    SVG + tag for tag in ("svg", "g", "path", "line", "rect", "circle", "text", "tspan")
)


def svg_for_page(chart: "alt.LayerChart", css: str = "") -> Markup:
    """The chart as an element of an HTML page that has ``COLOURS`` as CSS variables.

    It scales with its column. Each mark's ``aria-label`` says its values; the page's script shows
    them. The whole is one stop of the tabulator, the arrow keys go from mark to mark.

    Args:
        css: classes of the element.
    """
    spec = chart.to_dict(validate=False)
    root = ElementTree.fromstring(_svg(spec))
    width, height = root.attrib["width"], root.attrib["height"]
    _tidy(root)
    root.attrib.clear()
    root.attrib |= {
        "class": f"chart {css}".strip(),
        "viewBox": f"0 0 {width} {height}",
        "role": "figure",
        "aria-label": visible(str(spec["description"])),
    }
    if any("aria-label" in mark.attrib for mark in root.iterfind(".//*[@aria-label]")):
        root.attrib["tabindex"] = "0"
    text = ElementTree.tostring(root, encoding="unicode")
    return Markup(text.replace(f' xmlns="{SVG[1:-1]}"', "", 1))


def _tidy(element: ElementTree.Element) -> None:
    """Drop what draws nothing, and every attribute the page has no use for; shorten numbers."""
    for name, value in list(element.attrib.items()):
        if name not in KEPT or (name, value) in UNNEEDED:
            del element.attrib[name]
        elif name in ("d", "transform"):
            element.attrib[name] = re.sub(r"-?\d+\.\d+", _shorter, value)
    classes = element.attrib.pop("class", "").split()
    named = [name for name in classes if name.endswith("_marks") and not name.startswith("layer_")]
    if named:
        element.attrib["class"] = named[0].removesuffix("_marks")
    if "aria-label" in element.attrib:
        element.attrib["role"] = "img"
    children = list(element)
    element[:] = []
    for child in children:
        if child.tag not in TAGS or child.attrib.get("class") in ("background", "foreground"):
            continue
        _tidy(child)
        bare = child.tag == SVG + "g" and not child.attrib  # no more than its children
        element.extend(list(child) if bare else [child])


def _shorter(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}".removesuffix(".0")


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


# ---- papers -------------------------------------------------------------------------------------

FORMATS = ("svg", "pdf", "png")


def save(chart: "alt.LayerChart", path: Path) -> None:
    """Write the chart as the SVG, PDF or PNG that the path's ending names.

    A PNG is white where nothing is drawn: vl-convert gets the colours of what is half transparent
    over nothing wrong, such as those of bands.

    Raises:
        RunError: the disk is full.
    """
    import vl_convert

    variable = re.compile(r'"var\(--(\w+)\)"')  # a whole attribute: never a piece of a text
    spec = chart.to_dict() | ({"background": "white"} if path.suffix == ".png" else {})
    svg = variable.sub(lambda m: f'"{COLOURS[m[1]]}"' if m[1] in COLOURS else m[0], _svg(spec))
    if path.suffix == ".pdf":
        content = vl_convert.svg_to_pdf(svg)
    elif path.suffix == ".png":
        content = vl_convert.svg_to_png(svg, scale=3)
    else:
        content = svg.encode()
    write_atomically(path, lambda partial: _write(partial, content))
