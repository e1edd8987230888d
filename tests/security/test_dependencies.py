"""What is installed with the package: little, each with a reason, exact in a clone."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
SETS = {path.name: path.read_text().splitlines() for path in (REPOSITORY / "constraints").glob("*.txt")}
"""Dependencies of the version matrix."""
CONSTRAINTS = (REPOSITORY / "constraints.txt").read_text().splitlines()
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = [*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]

OF_AIRFLOW = {"airflow", "fastapi", "starlette", "sqlalchemy", "openlineage", "opentelemetry", "cryptography"}
"""What Airflow brings along, and its API server, for code that runs inside of it."""


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return found[0].lower()


def test_every_dependency_has_its_reason() -> None:
    document = (REPOSITORY / "docs" / "security.md").read_text().partition("## Supply chain")[2]
    rows = [line.split("|")[1] for line in document.splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    assert {name_of(each) for each in NEEDED} <= told
    assert told - {name_of(each) for each in NEEDED} <= {"pytest"}


def test_nothing_is_fetched_from_elsewhere() -> None:
    told = [*NEEDED, *CONSTRAINTS, *(line for lines in SETS.values() for line in lines)]
    assert [each for each in told if re.search(r"://|@|--(index|extra-index|find-links)", each)] == []


@pytest.mark.parametrize("constraints", [CONSTRAINTS, *SETS.values()], ids=["constraints.txt", *SETS])
def test_a_clone_installs_exact_versions(constraints: list[str]) -> None:
    pins = [line for line in constraints if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.!+]+( ; .+)?", line)] == []
    pinned = {name_of(line) for line in pins}
    assert {name_of(each) for each in NEEDED} - pinned == set()


def test_the_lowest_versions_that_are_tried_are_those_that_are_allowed() -> None:
    allowed = {name_of(each): Version(each.partition(">=")[2]) for each in NEEDED}
    tried = dict(line.split("==") for line in SETS["lowest.txt"] if "==" in line)
    assert {name: Version(tried[name]) for name in allowed} == allowed


def test_make_installs_them() -> None:
    makefile = (REPOSITORY / "demo" / "install.sh").read_text()
    assert "-c constraints.txt" in makefile or "--constraint" in makefile


def test_no_package_is_used_that_is_not_named() -> None:
    named = {name_of(each).replace("-", "_") for each in NEEDED} | OF_AIRFLOW | {"airflow_provider_openai_batches"}
    named.add("azure")  # What azure-identity, and azure-core that comes with it, are in.
    used = set()
    for path in (REPOSITORY / "airflow_provider_openai_batches").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                used.add((node.module or "").split(".")[0])
    assert "requests" in used
    assert used - named - sys.stdlib_module_names - {"pytest"} == set()
