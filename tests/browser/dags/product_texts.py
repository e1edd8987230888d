"""A job of three shards for the browser tests. It starts by itself."""

from __future__ import annotations

import os

from airflow.sdk import dag

from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator

ROWS = 1200


@dag(schedule="@once", is_paused_upon_creation=False)
def product_texts() -> None:
    OpenAIBatchOperator(
        task_id="write",
        requests=[f"Describe product {number} in one sentence." for number in range(ROWS)],
        model="gpt-4o-mini",
        output_path=os.environ["PRODUCT_TEXTS"] + "/{{ run_id }}",
        max_requests_per_batch=ROWS // 3,
        poll_interval=2,
    )


if "PRODUCT_TEXTS" in os.environ:  # the tests read ROWS from here, too
    product_texts()
