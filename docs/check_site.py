"""Check a built site: every link within it leads to a page and a place on it, and no page needs the network.

    python docs/check_site.py site

Sphinx itself knows links between pages; this looks at what a browser gets, hand-written HTML and the theme's included.
Links to other sites are not followed.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADED = {
    ("script", "src"),
    ("link", "href"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("object", "data"),
}
"""What a browser fetches by itself, unlike a link."""
_BY_A_SCRIPT = {"search.html", "genindex.html"}
"""Pages of Sphinx's own, whose places a script makes."""

_FAR = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^)'\"\s]+)")
"""What a style sheet fetches from elsewhere."""


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: list[tuple[bool, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.places.add(value)
            if value and (name == "href" or (tag, name) in _LOADED):
                self.links.append(((tag, name) in _LOADED, value))


def _lacks(page: _Page | None, place: str) -> bool:
    return page is not None and place not in page.places | {""}


def problems(site: Path) -> list[str]:
    """Return what is wrong with a site, one line each."""
    pages: dict[Path, _Page] = {}
    for path in sorted(site.rglob("*.html")):
        page = pages[path.resolve()] = _Page()
        page.feed(path.read_text(encoding="utf-8"))
    found = []
    for path, page in pages.items():
        shown = path.relative_to(site.resolve())
        for loads, link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if loads and parts.scheme != "data":
                    found.append(f"{shown} loads {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                found.append(f"{shown}: there is no {link}")
            elif _lacks(pages.get(target), unquote(parts.fragment)) and target.name not in _BY_A_SCRIPT:
                found.append(f"{shown}: there is no such place: {link}")
    for path in sorted(site.rglob("*.css")):
        found += [f"{path.relative_to(site)} loads {address}" for address in _FAR.findall(path.read_text("utf-8"))]
    return found


def main() -> int:
    """Print what is wrong."""
    site = Path(sys.argv[1])
    found = problems(site)
    pages = len(list(site.rglob("*.html")))
    for line in found:
        print(line, file=sys.stderr)
    print(f"{site}: {pages} pages, {len(found)} problems")
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
