"""docs/security.md claims nothing without a test, and names no test that is not there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs" / "security.md").read_text()
NAMED = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")


@cache
def names_in(path: str) -> set[str]:
    """Names of the tests in a file, those in classes as ``Class::test``."""
    found = set()
    for node in ast.parse((REPOSITORY / path).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


def claims(document: str) -> list[str]:
    """The items of its lists, each as one line."""
    items = re.findall(r"^- .*(?:\n  .*)*", document, re.MULTILINE)
    return [" ".join(item.removeprefix("- ").split()) for item in items]


def unfounded(document: str) -> list[str]:
    return [
        claim
        for claim in claims(document)
        if not claim.startswith("Not protected: ") and not re.search(r"`tests/[\w/.:]+`\)[.]?", claim)
    ]


def test_every_test_that_is_named_is_there() -> None:
    named = NAMED.findall(DOCUMENT)
    assert len(named) > 60
    assert len(named) == DOCUMENT.count("::test_"), "one is spelled in another way"
    missing = [
        f"{path}::{name}" for path, name in named if not (REPOSITORY / path).is_file() or name not in names_in(path)
    ]
    assert missing == []


def test_every_claim_has_a_test_or_says_that_it_is_none() -> None:
    assert len(claims(DOCUMENT)) > 60
    assert unfounded(DOCUMENT) == []


def test_a_claim_without_a_test_is_found() -> None:
    document = "- All is well.\n- Not protected: this.\n- Fine (`tests/a.py::test_a`).\n- Two\n  lines.\n"
    assert unfounded(document) == ["All is well.", "Two lines."]


def test_what_is_not_protected_is_said_in_every_part() -> None:
    for part in DOCUMENT.split("\n## ")[2:]:
        assert "Not protected: " in part, part.partition("\n")[0]


def test_how_to_report_is_there() -> None:
    said = (REPOSITORY / "SECURITY.md").read_text()
    assert "Report a vulnerability" in said
    assert "docs/security.md" in said
    assert "@" not in said, "reports go through the repository's host, to nobody's address"
