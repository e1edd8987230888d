"""What `make docs` looks for in the built site is found there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from .pages import ROOT

GOOD = '<a href="other.html#place">x</a> <a href="https://example.com/">y</a> <link href="style.css">'


@pytest.fixture(scope="module")
def check_site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_site", ROOT / "docs" / "check_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "style", "problem"),
    [
        (GOOD, "", None),
        ('<a href="gone.html">x</a>', "", "there is no gone.html"),
        ('<a href="other.html#gone">x</a>', "", "no such place: other.html#gone"),
        ('<a href="#gone">x</a>', "", "no such place: #gone"),
        ('<img src="gone.png">', "", "there is no gone.png"),
        ('<script src="https://cdn.example.com/x.js"></script>', "", "loads https://cdn"),
        ('<link rel="stylesheet" href="//fonts.example.com/x.css">', "", "loads //fonts"),
        (GOOD, "@import 'https://fonts.example.com/x.css';", "loads https://fonts"),
        (GOOD, "b { background: url(//example.com/x.png) }", "loads //example"),
    ],
)
def test_a_dead_link_and_a_page_that_needs_the_network_are_told(
    check_site: ModuleType, tmp_path: Path, page: str, style: str, problem: str | None
) -> None:
    (tmp_path / "index.html").write_text(page)
    (tmp_path / "other.html").write_text('<h1 id="place">x</h1>')
    (tmp_path / "style.css").write_text(style)
    found = check_site.problems(tmp_path)
    if problem is None:
        assert found == []
    else:
        [told] = found
        assert problem in told
