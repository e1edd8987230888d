"""Rows out of a database, answers into Parquet and databases, in a real Airflow; and again, after somebody meddled."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.results import read_results
from airflow_provider_openai_batches.testing import faults
from demo.airflow import Airflow
from tests.databases import Database, mariadb_database, sqlite_database

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

DAG_ID = "sinks"
SINKS = ["mariadb", "parquet", "sqlite"]
FIRST_DAY = datetime.date(2026, 11, 19)
ROWS, REFUSED = 12, 5
LABELS = "CREATE TABLE labels (review_id INTEGER PRIMARY KEY, day DATE, label TEXT, note VARCHAR(20))"


@pytest.fixture
def databases(airflow: Airflow, tmp_path: Path) -> Iterator[list[Database]]:
    """A MariaDB with reviews and a SQLite, behind the connections `our_mariadb` and `our_sqlite`."""
    pytest.importorskip("airflow.providers.sqlite")
    pytest.importorskip("pyarrow")
    for mariadb in mariadb_database():
        for sqlite in sqlite_database(tmp_path):
            for name, database in (("our_mariadb", mariadb), ("our_sqlite", sqlite)):
                airflow.api("POST", "/connections", {"connection_id": name, **database.connection})
                # What is there already is changed, but for a column that is not ours.
                database.run(LABELS, "INSERT INTO labels VALUES (4, '2026-01-01', 'old', 'mine')")
            days = [FIRST_DAY + datetime.timedelta(days=number // 4) for number in range(ROWS)]
            rows = ", ".join(f"({number}, '{day}', 'Review {number} ☕')" for number, day in enumerate(days))
            mariadb.run(
                "CREATE TABLE reviews (id INTEGER PRIMARY KEY, day DATE, review TEXT)",
                f"INSERT INTO reviews VALUES {rows}",
            )
            yield [mariadb, sqlite]


def test_answers_are_stored_and_stored_again_to_the_same_end(
    airflow: Airflow, service: Emulator, databases: list[Database], tmp_path: Path
) -> None:
    service.add_fault(faults.row_fails(str(REFUSED), 400, code="invalid_value", message="no"))
    before = len(service.batches())
    run_id = airflow.trigger(DAG_ID, {"directory": str(tmp_path)})
    finish(airflow, run_id, service)

    # The first day is not asked for, and one row is refused.
    wanted = [number for number in range(4, ROWS) if number != REFUSED]
    manifest = airflow.xcom(DAG_ID, run_id, "label")
    assert manifest is not None
    rows = list(read_results(manifest))
    assert [row["custom_id"] for row in rows] == [str(number) for number in range(4, ROWS)]
    outputs = {row["context"]["id"]: row["output"] for row in rows}
    expected = [(number, day_of(number), outputs[number]) for number in wanted]
    assert all(outputs[number] for number in wanted)
    check_all(tmp_path, databases, expected)

    for database in databases:
        database.run("DELETE FROM labels WHERE review_id = 6", "UPDATE labels SET label = 'x' WHERE review_id = 7")
    day, *_ = sorted((tmp_path / "labels-by-day").iterdir())
    [file] = day.iterdir()
    file.unlink()
    order = {"dry_run": False, "dag_run_id": run_id, "task_ids": SINKS, "only_failed": False}
    airflow.api("POST", f"/dags/{DAG_ID}/clearTaskInstances", order)
    finish(airflow, run_id, service)

    check_all(tmp_path, databases, expected)
    assert {sink: airflow.xcom(DAG_ID, run_id, sink)["stored"] for sink in SINKS} == dict.fromkeys(SINKS, len(wanted))
    assert len(service.batches()) - before == 1


def day_of(number: int) -> str:
    return str(FIRST_DAY + datetime.timedelta(days=number // 4))


def finish(airflow: Airflow, run_id: str, service: Emulator) -> None:
    """Let the run come to its end."""
    state = airflow.wait_for_run(DAG_ID, run_id, timeout_s=150, on_poll=lambda tasks: service.advance(30))
    assert state == "success", [
        airflow.task_log(DAG_ID, run_id, task.task_id, try_number=task.try_number)
        for task in airflow.task_instances(DAG_ID, run_id)
        if task.state != "success"
    ]


def check_all(directory: Path, databases: list[Database], expected: list[tuple[Any, ...]]) -> None:
    """Each sink has these rows, and the one that was refused apart from them."""
    from pyarrow import dataset

    there = dataset.dataset(directory / "labels-by-day", partitioning="hive")
    assert {Path(file).parent.name for file in there.files} == {f"day={day}" for _, day, _ in expected}
    found = [(row["review_id"], str(row["day"]), row["label"]) for row in there.to_table().to_pylist()]
    assert found == expected, "in the order of the results"
    [letter] = map(json.loads, (directory / "failed.jsonl").read_text().splitlines())
    assert (letter["custom_id"], letter["error"]["code"]) == (str(REFUSED), "invalid_value")
    for database in databases:
        found = database.rows("SELECT review_id, day, label, note FROM labels ORDER BY review_id")
        assert [(number, str(day), label) for number, day, label, _ in found] == expected
        assert {number: note for number, _, _, note in found if note} == {4: "mine"}
        failed = database.rows("SELECT custom_id, error_code FROM labels_failed")
        assert failed == [(str(REFUSED), "invalid_value")]
