"""The nightly DAG of the documentation in a real Airflow: scheduler, triggerer, workers, and a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.airflow import Airflow
from tests.airflow.test_label_postgres import TABLES
from tests.databases import CONN_ID, Database, postgresql_database

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


@pytest.fixture
def reviews(airflow: Airflow) -> Iterator[Database]:
    """Three reviews behind Airflow's connection `reviews_db`."""
    for database in postgresql_database():
        database.run(*TABLES, "INSERT INTO reviews VALUES (1, 'Fine.'), (2, 'Bad.'), (3, 'So so.')")
        airflow.api("POST", "/connections", {"connection_id": CONN_ID, **database.connection})
        yield database


def test_reviews_become_labels_in_the_same_database(airflow: Airflow, reviews: Database, tmp_path: str) -> None:
    run_id = airflow.trigger("label_postgres", {"outbox": str(tmp_path)})
    # Its first look comes after a minute: the file is as it stands in the documentation.
    assert airflow.wait_for_run("label_postgres", run_id, timeout_s=300) == "success"
    found = reviews.rows("SELECT review_id, label FROM review_labels ORDER BY review_id")
    assert [review_id for review_id, _ in found] == [1, 2, 3]
    assert all(label for _, label in found)
    stored = airflow.xcom("label_postgres", run_id, "store")
    assert stored == {"table": "review_labels", "stored": 3, "failed": 0, "not_storable": 0}

    again = airflow.trigger("label_postgres", {"outbox": str(tmp_path)})
    assert airflow.wait_for_run("label_postgres", again, timeout_s=100) == "success"
    assert "nothing to do" in airflow.task_log("label_postgres", again, "label")
