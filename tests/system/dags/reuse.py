"""A job that buys each question once, and its last rows directly."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, task

from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator

QUESTIONS = 20
ROWS = 25


@dag(schedule=None, params={"directory": Param("", type="string"), "conn_id": Param("", type="string")})
def reuse() -> None:
    @task
    def rows() -> list[dict[str, Any]]:
        return [{"custom_id": f"row-{n}", "prompt": f"Describe product {n % QUESTIONS}."} for n in range(ROWS)]

    OpenAIBatchOperator(
        task_id="label",
        requests=rows(),
        output_path="{{ params.directory }}/{{ run_id }}",
        answer_cache="{{ params.directory }}/answers",
        finish_synchronously_below=5,
        model="gpt-4o-mini",
        conn_id="{{ params.conn_id }}",
        poll_interval=1,
        # A task that resumes within a second of its deferral is now and then failed by Airflow's scheduler.
        retries=2,
        retry_delay=timedelta(seconds=1),
    )


reuse()
