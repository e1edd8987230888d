"""A job at each of the services, in a real Airflow."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_openai_batches.results import read_results
from demo.airflow import Airflow
from tests.identity import Identity
from tests.system.dags.anywhere import ROWS
from tests.system.together.conftest import SERVICES, WITH_IDENTITY
from tests.system.together.run import Run

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.mark.parametrize("name", SERVICES)
def test_a_job_is_done_in_a_real_airflow(at_service: dict[str, Run], name: str) -> None:
    run = at_service[name]
    check(run)
    assert set(run.statuses()) <= {200, 201, 302}


@pytest.mark.parametrize("name", WITH_IDENTITY)
def test_a_job_is_done_in_a_real_airflow_without_a_key(
    with_identity: dict[str, Run], identity: Identity, name: str
) -> None:
    check(with_identity[name])
    assert set(identity.asked) == {"https://cognitiveservices.azure.com"}


def test_what_a_job_left_at_azure_is_cleaned_up(airflow: Airflow, at_service: dict[str, Run]) -> None:
    job = at_service["azure"]
    check(job)
    run_id = airflow.trigger("clean", job.params)
    assert airflow.wait_for_run("clean", run_id, timeout_s=90) == "success", airflow.task_log("clean", run_id, "clean")
    gone = airflow.xcom("clean", run_id, "clean")
    assert gone is not None
    assert gone["files"] >= 4, "of two batches, the input and what came of it"
    assert job.service.count("DELETE", "/v1/files/{file_id}") == gone["files"]
    assert job.service.files() == []


def check(run: Run) -> list[dict[str, Any]]:
    """Wait for the end: green, each row answered in its place, and each bought once, in two batches.

    :return: the result rows
    """
    manifest = run.finish()
    assert (manifest["requests"], manifest["succeeded"], len(manifest["batch_ids"])) == (ROWS, ROWS, 2)
    rows = list(read_results(manifest))
    assert [row["context"]["number"] for row in rows] == list(range(ROWS))
    assert {row["status"] for row in rows} == {"succeeded"}
    assert len(run.service.batches()) == 2
    assert run.service.bought() == {f"row-{number}": 1 for number in range(ROWS)}
    return rows
