"""Every block of code is run, or says why not; every link has the form of one; every page has its place."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from .pages import NEVER_RUNS, PAGES, ROOT, RUNS, Block, blocks

ALL = [block for page in PAGES for block in blocks(page)]


def test_there_is_code_on_the_pages() -> None:
    assert len(PAGES) > 30
    for language in ("python", "bash", "json"):
        assert sum(block.language == language for block in ALL) > 2


@pytest.mark.parametrize("block", ALL, ids=str)
def test_every_block_is_of_a_language_that_is_run_or_known_not_to_be(block: Block) -> None:
    assert block.language in (*RUNS, *NEVER_RUNS), (
        f"{block}: {block.language or 'no language'}. Fence it as one of {', '.join(RUNS)}, or as text."
    )


@pytest.mark.parametrize("block", [block for block in ALL if block.mark], ids=str)
def test_a_block_that_does_not_run_says_why(block: Block) -> None:
    if block.mark in ("not run", "only parsed"):
        assert len(block.reason.split()) > 2, f"{block}: {block.reason!r} is no reason"
        for test in re.findall(r"tests/\S+\.py", block.reason):
            assert (ROOT / test).exists(), f"{block}: there is no {test}"
    if block.mark == "run by":
        test = (ROOT / block.reason).read_text()
        assert Path(block.page).name in test, f"{block}: {block.reason} does not read this page"


def test_most_blocks_run() -> None:
    """So that nobody marks them all."""
    runnable = [block for block in ALL if block.language in RUNS]
    skipped = [str(block) for block in runnable if block.mark == "not run"]
    assert len(skipped) <= len(runnable) / 8, skipped


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "json"], ids=str)
def test_json_is_json(block: Block) -> None:
    code = block.code.strip()
    json.loads(code if code[0] in "[{" else f"{{{code}}}")  # or members of an object


def test_sql_is_sql() -> None:
    for block in ALL:
        if block.language == "sql" and not block.mark:
            with closing(sqlite3.connect(":memory:")) as database:
                database.executescript(block.code)


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "python"], ids=str)
def test_python_is_python(block: Block) -> None:
    compile(block.code, str(block), "exec")


@pytest.mark.parametrize("page", PAGES)
def test_links_to_other_sites_are_addresses(page: str) -> None:
    for address in re.findall(r"\]\((https?:[^)\s]*)\)", (ROOT / page).read_text()):
        parts = urlsplit(address)
        assert parts.scheme == "https", address
        assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc), address


def test_every_page_has_its_place_in_the_navigation() -> None:
    """The build holds that every entry has its page; this, that every page has its entry."""
    placed = set()
    for index in ("docs/index.md", "docs/how-to/index.md", "docs/reference/index.md"):
        for block in blocks(index):
            if block.language == "{toctree}":
                lines = [line for line in block.code.splitlines() if line and not line.startswith(":")]
                names = [re.sub(r".*<(.+)>", r"\1", line) for line in lines]
                placed |= {(Path(index).parent / f"{name}.md").as_posix() for name in names}
    pages = {page for page in PAGES if page.startswith("docs/")} - {"docs/index.md"}
    assert pages <= placed, f"without a place: {sorted(pages - placed)}"


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("<!-- not run: it costs money -->\n```bash\nls\n```", "not run"),
        ("<!-- something else -->\n```bash\nls\n```", ""),
        ("<!-- not run: it costs money -->\n\nWords.\n\n```bash\nls\n```", ""),
        ("<div>\n\n<!-- rival -->\n```python\n1\n```\n\n</div>", "rival"),
    ],
)
def test_a_comment_counts_for_the_block_below_it_alone(text: str, mark: str) -> None:
    assert [block.mark for block in blocks("page.md", text)] == [mark]


def test_a_comment_that_is_nearly_one_is_refused() -> None:
    with pytest.raises(ValueError, match="not understood"):
        blocks("page.md", "<!-- not run -->\n```bash\nls\n```")
