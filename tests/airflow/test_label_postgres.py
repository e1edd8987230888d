"""The nightly DAG of the documentation, as it stands there, over several nights of a real PostgreSQL."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_openai_batches.emulator import Emulator
from tests.airflow.conftest import register
from tests.airflow.test_examples import ROOT, load
from tests.databases import Database, postgresql

__all__ = ["postgresql"]
pytestmark = [pytest.mark.airflow, pytest.mark.usefixtures("connection")]

FILE = ROOT / "example_dags" / "label_postgres.py"
TABLES = (
    "CREATE TABLE reviews (id INTEGER PRIMARY KEY, review TEXT)",
    "CREATE TABLE review_labels (review_id INTEGER PRIMARY KEY, label TEXT)",
)


@pytest.fixture
def night(airflow_db: None, postgresql: Database, tmp_path: Path) -> Iterator[Callable[[], dict[str, str]]]:
    """Let a night pass; give the states of the tasks."""
    postgresql.run(*TABLES)
    dag = load(FILE)
    dag.get_task("label").poll_interval = 0.1  # type: ignore[attr-defined]
    register(dag)
    first = datetime.datetime(2026, 11, 20, 2, tzinfo=datetime.UTC)
    nights = iter(range(100))

    def run() -> dict[str, str]:
        done = dag.test(logical_date=first + datetime.timedelta(days=next(nights)), run_conf={"outbox": str(tmp_path)})
        return {ti.task_id: str(ti.state) for ti in done.get_task_instances()}

    return run


def labelled(database: Database) -> list[Any]:
    return [review_id for (review_id,) in database.rows("SELECT review_id FROM review_labels ORDER BY review_id")]


def requests_of(emulator: Emulator) -> list[int]:
    return [batch["request_counts"]["total"] for batch in reversed(emulator.batches())]


def test_the_documentation_shows_this_file() -> None:
    text = FILE.read_text()
    assert f"```python\n{text}```" in (ROOT / "docs" / "sources-and-sinks.md").read_text()
    assert len(text.splitlines()) < 30


def test_each_night_labels_what_has_no_label_yet(
    night: Callable[[], dict[str, str]], postgresql: Database, emulator: Emulator
) -> None:
    well = {"label": "success", "store": "success"}
    postgresql.run("INSERT INTO reviews VALUES (1, 'Fine.'), (2, 'Bad.'), (3, NULL)")
    emulator.add_fault({"on": {"custom_id": "2"}, "do": {"outcome": "error"}, "times": 1})
    assert night() == well
    assert labelled(postgresql) == [1]
    letters = "SELECT target, custom_id, status, context::text FROM review_labels_failed"
    assert postgresql.rows(letters) == [("review_labels", "2", "failed", '{"id": 2, "review": "Bad."}')]

    assert night() == well  # The row that failed is tried again.
    assert labelled(postgresql) == [1, 2]
    assert postgresql.rows(letters) == []

    assert night() == {"label": "skipped", "store": "skipped"}  # Nothing is new.

    postgresql.run("INSERT INTO reviews VALUES (4, 'New: {{ ds }} {1}')")
    assert night() == well
    assert labelled(postgresql) == [1, 2, 4]
    assert requests_of(emulator) == [2, 1, 1]
    # Nobody's columns but the mapped ones were touched, and no review at all.
    assert postgresql.rows("SELECT count(*) FROM reviews WHERE review IS NULL") == [(1,)]
