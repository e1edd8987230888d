"""A job between two places of a bucket, in a real Airflow whose connection leads to a local S3 server."""

from __future__ import annotations

import json

import pytest

from airflow_provider_openai_batches.emulator import Emulator
from demo.airflow import Airflow
from tests.system.bucket import Bucket

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

DAG_ID = "on_s3"
ROWS = 25


def test_rows_in_a_bucket_become_results_in_the_bucket(airflow: Airflow, service: Emulator, s3: Bucket) -> None:
    rows = [{"custom_id": f"ticket-{number}", "prompt": f"Ticket {number}"} for number in range(ROWS)]
    source = s3.put("in/rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    before = len(service.batches())

    run_id = airflow.trigger(DAG_ID, {"source": source, "results": f"{s3.uri}/out"})
    state = airflow.wait_for_run(DAG_ID, run_id, timeout_s=120, on_poll=lambda tasks: service.advance(30))

    assert state == "success", airflow.task_log(DAG_ID, run_id, "label")
    manifest = airflow.xcom(DAG_ID, run_id, "label")
    assert manifest is not None
    assert len(service.batches()) - before == len(manifest["batch_ids"]) == 3
    assert all(path.startswith(f"{s3.uri}/out/results/") for path in manifest["results"])
    results = s3.results(manifest)
    assert [row["custom_id"] for row in results] == [row["custom_id"] for row in rows]
    assert {row["status"] for row in results} == {"succeeded"}
    assert airflow.xcom(DAG_ID, run_id, "count") == ROWS
