"""Every night: label the reviews that have no label yet, and put the labels into the same PostgreSQL."""

from __future__ import annotations

from airflow.sdk import dag

from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator
from airflow_provider_openai_batches.sql import SQLRequests
from airflow_provider_openai_batches.transfers.openai_batches_to_sql import OpenAIBatchResultsToSQLOperator

NEW = """SELECT id, review FROM reviews LEFT JOIN review_labels ON review_id = id
         WHERE review_id IS NULL AND review IS NOT NULL"""


@dag(schedule="0 2 * * *", max_active_runs=1, params={"outbox": "/tmp/openai-batches-outbox"})
def label_postgres() -> None:
    label = OpenAIBatchOperator(
        task_id="label", model="gpt-4o-mini", output_path="{{ params.outbox }}/label_postgres/{{ run_id }}",
        requests=SQLRequests("reviews_db", NEW, key="id", prompt="Is this review positive? Answer yes or no: {review}"),
        when_empty="skip", max_failed=1.0, retries=2,
    )  # fmt: skip
    OpenAIBatchResultsToSQLOperator(
        task_id="store", results=label.output, sql_conn_id="reviews_db", table="review_labels", key="review_id",
        columns={"review_id": "context.id", "label": "output"}, failed_table="review_labels_failed",
        retries=2,
    )  # fmt: skip


label_postgres()
