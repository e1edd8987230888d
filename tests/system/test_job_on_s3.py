"""A job between two places of a bucket, in a real Airflow whose connection leads to a local S3 server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from airflow_provider_openai_batches.emulator import Emulator
from demo.airflow import Airflow
from demo.processes import HOST, Processes, claim_port, local_environment

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

for module in ("airflow.providers.amazon", "s3fs", "moto"):
    pytest.importorskip(module)

DAG_ID = "on_s3"
CONN_ID = "our_s3"
BUCKET = "tickets"
KEY_ID, KEY = "somebody", "sesame-open"
ROWS = 25


@pytest.fixture
def s3(airflow: Airflow) -> Iterator[Any]:
    """A client of a server with an empty bucket, which Airflow's connection `our_s3` leads to, too."""
    import boto3

    url = f"http://{HOST}:{claim_port(None, '')}"
    argv = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", url.rpartition(":")[2]]
    with Processes(airflow.processes.log_dir / "s3", grace_s=0) as processes:
        processes.start("s3", argv, env=local_environment({}))
        processes.wait_for(lambda: _answers(url), timeout_s=60, what="the S3 server")
        where = {"endpoint_url": url, "region_name": "us-east-1"}
        connection = {"conn_type": "aws", "login": KEY_ID, "password": KEY, "extra": json.dumps(where)}
        airflow.api("POST", "/connections", {"connection_id": CONN_ID, **connection})
        client = boto3.client("s3", aws_access_key_id=KEY_ID, aws_secret_access_key=KEY, **where)
        client.create_bucket(Bucket=BUCKET)
        yield client


def test_rows_in_a_bucket_become_results_in_the_bucket(airflow: Airflow, service: Emulator, s3: Any) -> None:
    rows = [{"custom_id": f"ticket-{number}", "prompt": f"Ticket {number}"} for number in range(ROWS)]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    s3.put_object(Bucket=BUCKET, Key="in/rows.jsonl", Body=content.encode())
    there = f"s3://{CONN_ID}@{BUCKET}"
    before = len(service.batches())

    run_id = airflow.trigger(DAG_ID, {"source": f"{there}/in/rows.jsonl", "results": f"{there}/out"})
    state = airflow.wait_for_run(DAG_ID, run_id, timeout_s=120, on_poll=lambda tasks: service.advance(30))

    assert state == "success", airflow.task_log(DAG_ID, run_id, "label")
    manifest = airflow.xcom(DAG_ID, run_id, "label")
    assert manifest is not None
    assert len(service.batches()) - before == len(manifest["batch_ids"]) == 3
    results = []
    for path in manifest["results"]:
        assert path.startswith(f"{there}/out/results/")
        part = s3.get_object(Bucket=BUCKET, Key=path.removeprefix(f"{there}/"))["Body"]
        results += [json.loads(line) for line in part.iter_lines()]
    assert [row["custom_id"] for row in results] == [row["custom_id"] for row in rows]
    assert {row["status"] for row in results} == {"succeeded"}
    assert airflow.xcom(DAG_ID, run_id, "count") == ROWS


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/moto-api/", timeout=60).ok
    except requests.ConnectionError:
        return False
