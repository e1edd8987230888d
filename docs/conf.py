"""How ``make docs`` builds the site.

Sphinx, because docstrings here are reStructuredText and because it is kept up: Material for MkDocs, the other choice,
ends in May 2027. Pages are Markdown that reads well without being built, so they use no directive but in index pages.

The pages of the repository's root (README and others) are part of the site: see ``_ROOT_PAGES``.
"""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.util.inspect import signature as of_callable
from sphinx.util.inspect import stringify_signature

from airflow_provider_openai_batches import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_DOCS = Path(__file__).parent
_ROOT = _DOCS.parent

project = "airflow-provider-openai-batches"
release = version = __version__
author = project
html_title = f"{project} {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "index"
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 88
default_role = "code"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"

_ROOT_PAGES = {
    "index": "README.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "security-policy": "SECURITY.md",
}
"""Pages whose text is a file beside ``docs/``, by the name they have in the site."""

_MISSING = [page for page, file in _ROOT_PAGES.items() if not (_ROOT / file).exists()]
exclude_patterns = [f"{page}.md" for page in _MISSING]

_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def _with_root_pages(app: Sphinx, page: str, content: list[str]) -> None:
    """Put the root's text where a page stands for it, and lead links to such files to their pages."""
    folder = _DOCS / Path(page).parent
    text = content[0]
    if page in _ROOT_PAGES:
        marker = "<!-- the text -->"
        if marker not in text:
            raise ValueError(f"docs/{page}.md has no {marker}")
        text = text.replace(marker, _relinked((_ROOT / _ROOT_PAGES[page]).read_text(), _ROOT, folder))
    if page == root_doc:
        for missing in _MISSING:
            text = text.replace(f"\n{missing}\n", "\n")
    content[0] = _relinked(text, folder, folder)


def _relinked(text: str, written_in: Path, shown_in: Path) -> str:
    """Change a text's relative links to those of the folder that shows it."""
    pages = {(_ROOT / file).resolve(): _DOCS / f"{page}.md" for page, file in _ROOT_PAGES.items()}

    def link(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if re.match(r"[a-z]+:", target):
            return match[0]
        file = (written_in / target).resolve()
        file = pages.get(file, file)
        return f"{before}{Path(os.path.relpath(file, shown_in)).as_posix()}{after}"

    return _LINK.sub(link, text)


def _wide(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Leave code that stands side by side the room of the page's own contents."""
    if 'class="side-by-side"' in context.get("body", ""):
        context["meta"] = {**(context.get("meta") or {}), "hide-toc": ""}


def _constructor(
    app: Sphinx, what: str, name: str, obj: Any, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """Show a class with what its own constructor takes: Airflow's operators have a `__new__` that says nothing."""
    init = getattr(obj, "__init__", None)
    if what not in ("class", "exception") or not inspect.isfunction(inspect.unwrap(init)):
        return None
    given = of_callable(init, bound_method=True).replace(return_annotation=inspect.Signature.empty)
    return stringify_signature(given, unqualified_typehints=True), None


def setup(app: Sphinx) -> None:
    """Hook into the build."""
    app.connect("source-read", _with_root_pages)
    app.connect("autodoc-process-signature", _constructor)
    app.connect("html-page-context", _wide, priority=100)
