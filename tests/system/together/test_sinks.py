"""Rows out of a database, answers into Parquet and databases, in a real Airflow; and again, after somebody meddled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_openai_batches.results import read_results
from tests.databases import Database
from tests.system.together.conftest import REFUSED, REVIEWED
from tests.system.together.run import Run

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

SINKS = ["mariadb", "parquet", "sqlite"]


def test_answers_are_stored_and_stored_again_to_the_same_end(sinks: Run, databases: dict[str, Database]) -> None:
    directory = Path(sinks.params["directory"])

    rows = list(read_results(sinks.finish()))

    asked = [number for number, day in REVIEWED.items() if day >= "2026-11-20"]
    assert [row["custom_id"] for row in rows] == [str(number) for number in asked]
    outputs = {row["context"]["id"]: row["output"] for row in rows if row["status"] == "succeeded"}
    assert list(outputs) == [number for number in asked if number != REFUSED]
    stored = [(number, REVIEWED[number], output) for number, output in outputs.items()]
    check(directory, databases, stored)

    for database in databases.values():
        database.run("DELETE FROM labels WHERE review_id = 6", "UPDATE labels SET label = 'x' WHERE review_id = 7")
    day, *_ = sorted((directory / "labels-by-day").iterdir())
    [file] = day.iterdir()
    file.unlink()
    sinks.clear(SINKS)
    sinks.finish()

    check(directory, databases, stored)
    assert {sink: sinks.xcom(sink)["stored"] for sink in SINKS} == dict.fromkeys(SINKS, len(stored))
    assert len(sinks.service.batches()) == 1


def check(directory: Path, databases: dict[str, Database], stored: list[tuple[Any, ...]]) -> None:
    """Each sink has these rows, and the one that was refused apart from them."""
    from pyarrow import dataset

    there = dataset.dataset(directory / "labels-by-day", partitioning="hive")
    assert {Path(file).parent.name for file in there.files} == {f"day={day}" for _, day, _ in stored}
    found = [(row["review_id"], str(row["day"]), row["label"]) for row in there.to_table().to_pylist()]
    assert found == stored, "in the order of the results"
    [letter] = map(json.loads, (directory / "failed.jsonl").read_text().splitlines())
    assert (letter["custom_id"], letter["error_code"]) == (str(REFUSED), "invalid_value")
    for database in databases.values():
        found = database.rows("SELECT review_id, day, label, note FROM labels ORDER BY review_id")
        assert [(number, str(day), label) for number, day, label, _ in found] == stored
        assert {number: note for number, _, _, note in found if note} == {4: "mine"}
        failed = database.rows("SELECT custom_id, error_code FROM labels_failed")
        assert failed == [(str(REFUSED), "invalid_value")]
