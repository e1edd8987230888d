"""What is asked twice is bought once, a handful needs no second batch, and files go: in a real Airflow, on S3 too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_openai_batches.emulator import Emulator
from demo.airflow import Airflow
from tests.system.bucket import Bucket
from tests.system.conftest import NewService
from tests.system.dags.reuse_and_clean import QUESTIONS, ROWS

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

CHAT = ("POST", "/v1/chat/completions")


def run(airflow: Airflow, dag_id: str, conf: dict[str, Any], **options: Any) -> str:
    run_id = airflow.trigger(dag_id, conf)
    state = airflow.wait_for_run(dag_id, run_id, timeout_s=150, **options)
    assert state == "success", [
        airflow.task_log(dag_id, run_id, t.task_id) for t in airflow.task_instances(dag_id, run_id)
    ]
    return run_id


def test_a_second_run_buys_nothing_and_the_first_finishes_its_last_rows_without_a_batch(
    airflow: Airflow, service: Emulator, s3: Bucket
) -> None:
    # Two rows of the batch fail in a way that may pass.
    service.add_fault({"on": {"custom_id": "row-3"}, "do": {"outcome": "server_error"}})
    service.add_fault({"on": {"custom_id": "row-7"}, "do": {"outcome": "server_error"}})
    batches, asked = len(service.batches()), service.count(*CHAT)

    first = run(airflow, "reuse", {"directory": f"{s3.uri}/reuse"}, on_poll=lambda tasks: service.advance(30))

    manifest = airflow.xcom("reuse", first, "label")
    assert manifest is not None
    assert (manifest["requests"], manifest["succeeded"]) == (ROWS, ROWS)
    assert (manifest["direct"]["requests"], manifest["reused"]["duplicates"]) == (2, ROWS - QUESTIONS)
    assert (len(service.batches()) - batches, service.count(*CHAT) - asked) == (1, 2)
    assert s3.keys(f"reuse/{first}/results/")
    assert s3.keys("reuse/answers/")
    rows = s3.results(manifest)
    assert [row["custom_id"] for row in rows] == [f"row-{n}" for n in range(ROWS)]
    assert [row["output"] for row in rows[QUESTIONS:]] == [row["output"] for row in rows[: ROWS - QUESTIONS]]

    second = run(airflow, "reuse", {"directory": f"{s3.uri}/reuse"})

    again = airflow.xcom("reuse", second, "label")
    assert again is not None
    assert (again["succeeded"], again["batch_ids"], again["reused"]["cache"]) == (ROWS, [], QUESTIONS)
    assert [row["output"] for row in s3.results(again)] == [row["output"] for row in rows]
    assert (len(service.batches()) - batches, service.count(*CHAT) - asked) == (1, 2)


def test_at_azure_a_job_is_done_and_what_it_left_is_cleaned_up(
    airflow: Airflow, new_service: NewService, tmp_path: Path
) -> None:
    azure = new_service("our_azure", {"dialect": "azure", "auth": "api-key"}, dialect="azure")
    conf = {"directory": str(tmp_path), "conn_id": "our_azure"}

    done = run(airflow, "reuse", conf)

    manifest = airflow.xcom("reuse", done, "label")
    assert manifest is not None
    assert (manifest["succeeded"], len(manifest["batch_ids"])) == (ROWS, 1)
    assert len(azure.batches()) == 1
    cleaned = run(airflow, "clean", conf)

    gone = airflow.xcom("clean", cleaned, "clean")
    assert gone is not None
    assert gone["files"] >= 2, "the input and what came of it"
    assert azure.count("DELETE", "/v1/files/{file_id}") == gone["files"]
