"""A job of two batches at whatever service the run names, and the files that it leaves there."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag

from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchCleanupOperator, OpenAIBatchOperator

ROWS = 8
PARAMS = {"directory": Param("", type="string"), "conn_id": Param("", type="string")}


@dag(schedule=None, params=PARAMS)
def anywhere() -> None:
    OpenAIBatchOperator(
        task_id="label",
        requests=[{"prompt": f"Describe product {n}.", "context": {"number": n}} for n in range(ROWS)],
        output_path="{{ params.directory }}",
        model="gpt-4o-mini",
        max_requests_per_batch=ROWS // 2,
        conn_id="{{ params.conn_id }}",
        poll_interval=1,
        # A task that resumes within a second of its deferral is now and then failed by Airflow's scheduler.
        retries=2,
        retry_delay=timedelta(seconds=1),
    )


@dag(schedule=None, params=PARAMS)
def clean() -> None:
    OpenAIBatchCleanupOperator(task_id="clean", older_than=1, dag_ids=["anywhere"], conn_id="{{ params.conn_id }}")


anywhere()
clean()
