"""A job whose rows come from object storage and whose results go there, where the next task reads them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.openlineage.utils.selective_enable import enable_lineage
from airflow.sdk import Param, dag, task

from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator
from airflow_provider_openai_batches.results import read_results

PARAMS = {name: Param("", type="string") for name in ("source", "results", "conn_id")}


@dag(schedule=None, params=PARAMS)
def in_bucket() -> None:
    job = OpenAIBatchOperator(
        task_id="label",
        requests="{{ params.source }}",
        output_path="{{ params.results }}",
        model="gpt-4o-mini",
        max_requests_per_batch=10,
        conn_id="{{ params.conn_id }}",
        poll_interval=1,
        retries=2,
        retry_delay=timedelta(seconds=1),
    )

    @task
    def count(manifest: dict[str, Any]) -> int:
        return sum(row["status"] == "succeeded" for row in read_results(manifest))

    count(job.output)


enable_lineage(in_bucket())
