"""The nightly DAG of the documentation in a real Airflow: scheduler, triggerer, workers, and a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.airflow import Airflow
from tests.airflow.test_label_postgres import TABLES
from tests.databases import CONN_ID, Database, postgresql_database

DAG_ID = "label_postgres"

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


@pytest.fixture
def reviews(airflow: Airflow) -> Iterator[Database]:
    """Three reviews behind Airflow's connection `reviews_db`."""
    for database in postgresql_database():
        database.run(*TABLES, "INSERT INTO reviews VALUES (1, 'Fine.'), (2, 'Bad.'), (3, 'So so.')")
        airflow.api("POST", "/connections", {"connection_id": CONN_ID, **database.connection})
        yield database


def test_reviews_become_labels_in_the_same_database(airflow: Airflow, reviews: Database, tmp_path: Path) -> None:
    # The DAG is as it stands in the documentation: its first look at the batch comes after a minute, and Airflow starts
    # the run of last night by itself. Whichever run is first has the reviews; they are labelled once.
    first = airflow.trigger(DAG_ID, {"outbox": str(tmp_path)})
    assert airflow.wait_for_run(DAG_ID, first, timeout_s=300) == "success"
    found = reviews.rows("SELECT review_id, label FROM review_labels ORDER BY review_id")
    assert [review_id for review_id, _ in found] == [1, 2, 3]
    assert all(label for _, label in found)
    assert reviews.rows("SELECT * FROM review_labels_failed") == []

    again = airflow.trigger(DAG_ID, {"outbox": str(tmp_path)})
    assert airflow.wait_for_run(DAG_ID, again, timeout_s=100) == "success"
    assert {task.state for task in airflow.task_instances(DAG_ID, again)} == {"skipped"}
