"""A job of three shards for the browser tests."""

from __future__ import annotations

from airflow.sdk import Param, dag

from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator

ROWS = 1200


@dag(schedule=None, params={"directory": Param("", type="string")})
def product_texts() -> None:
    OpenAIBatchOperator(
        task_id="write",
        requests=[f"Describe product {number} in one sentence." for number in range(ROWS)],
        model="gpt-4o-mini",
        output_path="{{ params.directory }}/texts",
        max_requests_per_batch=ROWS // 3,
        poll_interval=2,
    )


product_texts()
