"""What mkdocs does beside its own: generated pages, and links that leave ``docs/``.

A page of ``docs/`` links to ``../EXPERIMENTS.md`` as GitHub wants it. In the site such a file is a
page, too, under ``repository/``: the site is whole without a network, and no address is written
down twice.
"""

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from site_pages import PAGES, ROOT

LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)#\s]+)")
CODE = {".py": "python", ".toml": "toml", ".json": "json"}
ELSEWHERE = {
    "README.md": "index.md",
    "src/forkpoint/config": "reference/settings.md",
    "src/forkpoint/recipes": "reference/recipes.md",
}
"""What of the repository the site has under another name."""
LISTED = ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "EXPERIMENTS.md")
"""Files of the repository that the menu names."""
OUTSIDE = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?https?:"
    r"|<link\b(?![^>]*\brel=\"?(?:canonical|alternate))[^>]*\bhref=\"?https?:"
)


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and every file of the repository that a page links to."""
    for uri, make in PAGES.items():
        files.append(File.generated(config, uri, content=make()))
    waiting = [*LISTED]
    for page in files.documentation_pages():
        if page.generated_by is None:
            waiting += _links(f"docs/{page.src_uri}", page.content_string)
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or path.startswith("docs/") or path in ELSEWHERE:
            continue
        seen.add(path)
        if not (ROOT / path).is_file():
            raise PluginError(f"a page links to {path}, which is no file of the repository")
        content = _page_of(ROOT / path)
        level = InclusionLevel.INCLUDED if path in LISTED else InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, _place(path), content=content, inclusion=level))
        waiting += _links(path, content) if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point each link that leaves ``docs/`` to where the site has its file."""
    uri = page.file.src_uri
    if uri in PAGES:
        return markdown
    path = uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"
    here = posixpath.dirname(uri)

    def moved(link: re.Match[str]) -> str:
        return link[1] + posixpath.relpath(_place(_target(path, link[2])), here)

    return LINK.sub(moved, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Refuse a page that would load anything from elsewhere."""
    if found := OUTSIDE.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from outside: {found[0]}")
    return output


def _links(path: str, text: str) -> Iterator[str]:
    for link in LINK.finditer(text):
        yield _target(path, link[2])


def _target(path: str, link: str) -> str:
    """The path in the repository that a link on ``path`` leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _place(path: str) -> str:
    """Where the site has a file of the repository."""
    if path in ELSEWHERE:
        return ELSEWHERE[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def _page_of(path: Path) -> str:
    """A file as Markdown: code in a frame, a notebook cell by cell."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    title = f"# {path.relative_to(ROOT)}\n\n"
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        return title + "\n\n".join(map(_cell, cells))
    return f"{title}````{CODE.get(path.suffix, 'text')}\n{text}\n````\n"


def _cell(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    return f"```python\n{source}\n```" if cell["cell_type"] == "code" else source
