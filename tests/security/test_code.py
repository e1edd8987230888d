"""What the package's code does not do: run texts, unpack archives, switch off TLS, or loop in a pattern."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import airflow_provider_openai_batches as package

ROOT = Path(package.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text()) for path in ROOT.rglob("*.py")
}

NEVER_IMPORTED = {
    *("pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "copyreg"),
    *("yaml", "xml", "lxml", "zipfile", "tarfile", "jinja2", "subprocess", "ctypes", "pty", "telnetlib", "ftplib"),
}
"""Modules that run what they read, unpack what may be anything, or start programs."""

NEVER_CALLED = {"eval", "exec", "compile", "__import__", "system", "popen", "literal_eval", "from_string"}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


def called(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func
            owner = name.value.id if isinstance(name, ast.Attribute) and isinstance(name.value, ast.Name) else ""
            if owner != "re":  # patterns are compiled, too
                yield name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "")


def faults(tree: ast.AST) -> list[str]:
    found = [name for name in imported(tree) if name.split(".")[0] in NEVER_IMPORTED]
    found += NEVER_CALLED.intersection(called(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("verify", "check_hostname", "shell"):
            found.append(node.arg)
        if isinstance(node, ast.Attribute) and node.attr in ("_create_unverified_context", "CERT_NONE"):
            found.append(node.attr)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_nothing_that_is_read_is_run_or_unpacked_and_tls_stays_on(module: str) -> None:
    assert faults(MODULES[module]) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from yaml import load",
        "import xml.etree.ElementTree",
        "eval('1')",
        "def f():\n    import subprocess",
        "import os\nos.system('x')",
        "session.get(url, verify=False)",
        "ssl._create_unverified_context()",
    ],
)
def test_the_rule_can_be_broken(source: str) -> None:
    assert faults(ast.parse(source))


def test_no_csv_is_written_in_which_a_spreadsheet_could_find_a_formula() -> None:
    names = {
        node.attr for tree in MODULES.values() for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    } | set().union(*(called(tree) for tree in MODULES.values()))
    assert "reader" in names, "CSV is read"
    assert not {"writer", "DictWriter", "writerow", "writerows", "to_csv", "write_csv"} & names


# --- patterns ---------------------------------------------------------------------------------------------------------

LONGEST = {("jobs.queue", "_LIMIT"): 2_000}
"""Characters of the texts that a pattern sees; those of a batch's errors and of refusals are cut at 2,000."""

PIECES = (
    *(" ", "\n", "a", "1", "_", "-", ",", ".", "[", "]", "<", ">", "(", "(?", "\\", "{", "e-", "-2024", "a/"),
    *("limit: ", "limit: 1", "limit of 1", "data:", ";base64,", "data:a;base64,"),
)
FILLINGS = (" ", "1", "a", ",", "-", "\\", "(", "<")


def patterns() -> Iterator[tuple[str, str, re.Pattern[str] | re.Pattern[bytes]]]:
    for found in pkgutil.walk_packages([str(ROOT)], f"{package.__name__}."):
        if found.name.endswith("__main__") or ".testing" in found.name:
            continue
        for name, value in vars(importlib.import_module(found.name)).items():
            if isinstance(value, re.Pattern):
                yield found.name.removeprefix(f"{package.__name__}."), name, value


@pytest.mark.timeout(900)  # Its own seconds of CPU are what it counts.
@pytest.mark.airflow
def test_no_pattern_of_ours_can_be_kept_busy_by_a_text() -> None:
    slow = []
    for module, name, pattern in patterns():
        length = LONGEST.get((module, name), 20_000)
        texts = [(piece * length)[:length] for piece in PIECES]
        texts += [piece + filling * length for piece in PIECES for filling in FILLINGS]
        for text in texts:
            subject = f"{text}!" if isinstance(pattern.pattern, str) else f"{text}!".encode()
            began = time.process_time()
            pattern.search(subject)  # type: ignore[arg-type]
            if time.process_time() - began > 0.25:
                slow.append((module, name, text[:30]))
    assert slow == []


# --- references in a schema -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_schema_fetches_nothing(scheme: str, tmp_path: Path) -> None:
    """Some validators follow a reference to wherever it leads."""
    from airflow_provider_openai_batches.api.errors import InvalidInputError
    from airflow_provider_openai_batches.jobs.structured import OutputSchema

    callers = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            try:
                callers.append(server.accept()[1])
            except OSError:
                return

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        (tmp_path / "schema.json").write_text('{"type": "string"}')
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x" if scheme == "http" else f"file://{tmp_path}/schema.json"
        schema = {
            "type": "object",
            "properties": {"a": {"$ref": url}},
            "required": ["a"],
            "additionalProperties": False,
        }
        with pytest.raises(InvalidInputError, match="ref"):
            OutputSchema.of(schema).parse('{"a": "x"}')
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    assert callers == []
