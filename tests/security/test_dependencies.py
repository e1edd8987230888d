"""What is installed with the package: little, each with a reason, exact in a clone."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
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
    assert [
        each for each in [*NEEDED, *CONSTRAINTS] if re.search(r"://|@|--(index|extra-index|find-links)", each)
    ] == []


def test_a_clone_installs_exact_versions() -> None:
    pins = [line for line in CONSTRAINTS if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.!+]+( ; .+)?", line)] == []
    pinned = {name_of(line) for line in pins}
    assert {name_of(each) for each in NEEDED} - pinned == set()
    makefile = (REPOSITORY / "demo" / "install.sh").read_text()
    assert "-c constraints.txt" in makefile or "--constraint" in makefile


def test_no_package_is_used_that_is_not_named() -> None:
    named = {name_of(each).replace("-", "_") for each in NEEDED} | OF_AIRFLOW | {"airflow_provider_openai_batches"}
    used = set()
    for path in (REPOSITORY / "airflow_provider_openai_batches").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                used.add((node.module or "").split(".")[0])
    assert "requests" in used
    assert used - named - sys.stdlib_module_names - {"pytest"} == set()
