"""Jobs that say what they would cost, and one that may not cost it."""

from __future__ import annotations

from airflow.sdk import Param, dag

from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator

ROWS = 1000


@dag(schedule=None, params={"directory": Param("", type="string")})
def costs() -> None:
    job = {
        "requests": [f"Describe product {number}." for number in range(ROWS)],
        "model": "gpt-4o-mini",
        "body": {"max_completion_tokens": 1000},
        "conn_id": "service",
        "poll_interval": 1,
    }
    OpenAIBatchOperator(task_id="estimate", output_path="{{ params.directory }}/estimate", dry_run=True, **job)
    OpenAIBatchOperator(task_id="too_dear", output_path="{{ params.directory }}/too_dear", max_cost=0.05, **job)


costs()
