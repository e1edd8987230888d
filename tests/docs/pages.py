"""The pages of the documentation and their blocks of code.

What runs, by language:

==========  =============================================================================================
`python`    all blocks of a page are one DAG file; its DAGs run (`tests/airflow/test_docs.py`). A block that
            begins with `# dags/name.py` is a file of that name for the page's `bash`
`bash`      all blocks of a page are one script (`test_bash.py`). `pip` and `make` are not run in it: what they
            do needs the network, or has tests of its own
`json`      is parsed; one that is to be a file for the `bash` has `<!-- file: name -->` above it
`sql`       runs in an empty SQLite database
`console`   a session with its output; its commands are parsed by `tests/cli/test_process.py`
`text`      is not run, nor are the directives of index and reference pages, which the site's build runs
==========  =============================================================================================

A block that cannot run like this says why, in a comment above it:

    <!-- not run: it needs a key and costs money -->
    <!-- only parsed (reader, writer): events start these DAGs, see tests/system/test_events_in_airflow.py -->
    <!-- run by: tests/testing/test_documentation.py -->
    <!-- rival -->  constructed in the virtual environment of `make bench`
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
RUNS = ("python", "bash", "json", "sql")
NEVER_RUNS = ("console", "text", "{toctree}", "{eval-rst}")

_MARK = re.compile(r"<!-- (?:(not run|run by|only parsed \([\w, ]+\)|file): (.+?)|(rival)) -->", re.DOTALL)
_KNOWN_BEGINNINGS = ("not run", "run by", "only parsed", "file", "rival")
_FILE = re.compile(r"# (\S+/\S+\.py)\n")


@dataclass(frozen=True)
class Block:
    """A piece of code on a page.

    :param page: path of the page in the repository
    :param line: of its first fence, from 1
    :param language: what stands behind the fence; empty for none, and for code that is only indented
    :param mark: what the comment above says that it is: `not run`, `run by`, `only parsed`, `file`, `rival`; or empty
    :param reason: what stands behind it
    :param parsed: DAGs that do not run, for `only parsed`
    """

    page: str
    line: int
    language: str
    code: str
    mark: str = ""
    reason: str = ""
    parsed: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that it is, by its own first line or the comment above."""
        if self.mark == "file":
            return self.reason
        named = _FILE.match(self.code) if self.language == "python" else None
        return named[1] if named else None


def blocks(page: str, text: str | None = None) -> list[Block]:
    """Read all blocks of a page, in order.

    :param page: path in the repository
    :param text: its text; default: the file's
    """
    found = []
    above = ""
    for token in MarkdownIt().parse((ROOT / page).read_text() if text is None else text):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            mark, reason, parsed = _read(above)
            found.append(Block(page, token.map[0] + 1, token.info.strip(), token.content, mark, reason, parsed))
        above = token.content if token.type == "html_block" else ""
    return found


def _read(comment: str) -> tuple[str, str, tuple[str, ...]]:
    """Return kind, reason and names of a comment above a block; empty ones for other comments."""
    found = _MARK.search(comment)
    if found is None:
        if re.match(rf"\s*<!--\s*({'|'.join(_KNOWN_BEGINNINGS)})", comment):
            raise ValueError(f"not understood: {comment.strip()!r}. The ways to say it are in tests/docs/pages.py")
        return "", "", ()
    if found[3]:
        return "rival", "", ()
    kind, _, names = found[1].partition(" (")
    return kind, found[2], tuple(re.findall(r"\w+", names))
