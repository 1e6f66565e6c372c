"""A report, read as a browser would read it."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from forkpoint.report import build_report

APART = {"td", "th", "tr", "dt", "dd", "p", "pre", "li", "div", "span", "summary", "figure", "text"}
"""Elements that begin a new word for a reader."""
VOID = {"meta", "link", "input", "br", "hr", "img"}


class Page(HTMLParser):
    """What a browser would make of a page: elements, the text of each kind, attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.sections: dict[str, str] = {}
        """Text of the sections, by their anchors."""
        self._open: list[tuple[str, str | None]] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in APART:
            self.handle_data(" ")
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("id") if tag == "section" else None))
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        tags = {tag for tag, _ in self._open}
        for tag in tags:
            if tag not in ("body", "html") or "script" not in tags:
                self.texts[tag][-1] += data
        for _, anchor in self._open:
            if anchor is not None and "title" not in tags:
                self.sections[anchor] = self.sections.get(anchor, "") + data

    def words(self, section: str | None = None) -> str:
        """The text of the page, or of a section, without its script; white space is one space."""
        text = " ".join(self.texts["body"]) if section is None else self.sections[section]
        return " ".join(text.split())

    def payload(self) -> dict[str, Any]:
        """What the viewer of completions draws."""
        return json.loads(self.texts["script"][0])

    def marks(self) -> list[tuple[str, str]]:
        """(what it says of itself, where it is drawn) of the marks of all charts."""
        return [
            (a["aria-label"] or "", a.get("transform") or "")
            for _, a in self.elements
            if a.get("role") == "img"
        ]

    def titles(self) -> list[str]:
        """What the pointer is told, chart by chart."""
        return [text for text, _ in self.marks()]

    def labels(self) -> list[str]:
        """What screen readers are told of charts."""
        return [a["aria-label"] or "" for _, a in self.elements if "aria-label" in a]


def page_of(*runs: Path, **settings: Any) -> Page:
    """The page about the runs."""
    return Page(build_report(runs, runs[0].parent / "report.html", **settings))
