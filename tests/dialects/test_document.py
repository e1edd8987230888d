"""docs/services.md says what the tests and the dialects say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_openai_batches.api.dialects import DIALECTS, Dialect
from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.hooks.openai_batches import OpenAIBatchesHook
from tests.dialects.conftest import SERVICES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "services.md").read_text()


def table(first: str) -> list[dict[str, str]]:
    """The rows of the table whose first column has this head, by their heads, without backticks."""
    [text] = re.findall(rf"^\| {first} \|.*\n(?:\|.*\n)+", PAGE, re.MULTILINE)
    head, _, *rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def services_of() -> dict[str, set[str]]:
    """The services for which each test is run, here and in a real Airflow, as pytest itself collects them."""
    where = ["tests/dialects", "tests/system/together"]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *where, "--ignore", __file__]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, set[str]] = defaultdict(set)
    for name, parameters in re.findall(r"::(test_\w+)\[(.*)\]$", done.stdout, re.MULTILINE):
        # The longest name first: azure is the beginning of azure-classic.
        service = next((each for each in sorted(SERVICES, key=len, reverse=True) if parameters.startswith(each)), None)
        found[name].add(service or "")
    return found


def test_each_row_is_held_by_its_test_at_each_service_that_it_names(services_of: dict[str, set[str]]) -> None:
    rows = table("what")
    assert len(rows) > 25
    for row in rows:
        claimed = {name for name in SERVICES if row[name]}
        assert {row[name] for name in claimed} == {"yes"}, row
        assert services_of[row["test"]] - {""} == claimed, row["test"]


def test_each_step_of_the_walk_has_its_row() -> None:
    steps = re.findall(r"^def (test_\w+)", (Path(__file__).parent / "test_walk.py").read_text(), re.MULTILINE)
    assert set(steps) <= {row["test"] for row in table("what")}


def window(dialect: Dialect) -> str:
    if dialect.name == "openai":
        return "24h"
    if dialect.windows_h is None:
        return "as configured there" if dialect.name == "doubleword" else "as the service behind it"
    return " to ".join(f"{hours}h" for hours in dict.fromkeys(dialect.windows_h))


def test_the_table_of_dialects_says_what_they_are() -> None:
    rows = {row["dialect"]: row for row in table("dialect")}
    assert list(rows) == list(DIALECTS)
    for name, dialect in DIALECTS.items():
        row = rows[name]
        assert row["service"] == dialect.service
        assert row["base URL (`host`)"] == dialect.base_url or (not dialect.base_url and "your" in str(row))
        assert row["key sent as"] == dialect.auth
        assert row["completion window"] == window(dialect)
        assert row["requests"] == f"{dialect.max_requests:,}"
        assert row["bytes"] == f"{dialect.max_bytes:,}"
        found_by = row["lost create found by"]
        assert ("input file" in found_by) != dialect.keeps_metadata


CONNECTIONS = [json.loads(text) for text in re.findall(r"^```json\n(.*)\n```$", PAGE, re.MULTILINE)]


@pytest.mark.parametrize("connection", CONNECTIONS, ids=lambda connection: str(connection.get("extra")))
def test_each_connection_of_the_page_can_be_used(connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OPENAI_BATCHES_DEFAULT", json.dumps(connection))
    settings = OpenAIBatchesHook().get_conn().settings
    assert settings.dialect.name == connection["extra"]["dialect"]
    assert settings.url("batches", "a/b").endswith("/batches/a%2Fb")


def test_there_is_a_connection_for_each_kind_of_service() -> None:
    shown = {connection["extra"]["dialect"] for connection in CONNECTIONS}
    assert shown == {"azure", "groq", "dashscope", "litellm"}


def test_an_emulator_of_no_service_is_refused() -> None:
    with pytest.raises(ValueError, match="dialect: expected one of openai, azure, azure-classic"):
        Emulator(dialect="bedrock")
