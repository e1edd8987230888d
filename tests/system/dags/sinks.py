"""Rows of a MariaDB become answers in Parquet, in the same MariaDB and in SQLite."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag

from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator
from airflow_provider_openai_batches.sql import SQLRequests
from airflow_provider_openai_batches.transfers.openai_batches_to_parquet import OpenAIBatchResultsToParquetOperator
from airflow_provider_openai_batches.transfers.openai_batches_to_sql import OpenAIBatchResultsToSQLOperator

REVIEWS = "SELECT id, day, review FROM reviews WHERE day >= :since ORDER BY id"
COLUMNS = {"review_id": "context.id", "day": "context.day", "label": "output"}


@dag(schedule=None, params={"directory": Param("", type="string"), "conn_id": Param("", type="string")})
def sinks() -> None:
    label = OpenAIBatchOperator(
        task_id="label",
        requests=SQLRequests(
            "our_mariadb", REVIEWS, prompt="Is this positive? {review}", key="id", parameters={"since": "2026-11-20"}
        ),
        output_path="{{ params.directory }}/labels",
        model="gpt-4o-mini",
        max_failed=1,
        max_attempts=1,
        conn_id="{{ params.conn_id }}",
        poll_interval=1,
        retries=2,
        retry_delay=timedelta(seconds=1),
    )
    OpenAIBatchResultsToParquetOperator(
        task_id="parquet",
        results=label.output,
        path="{{ params.directory }}/labels-by-day",
        columns=COLUMNS,
        partition_by=["day"],
        failed_path="{{ params.directory }}/failed.jsonl",
    )
    for kind in ("mariadb", "sqlite"):
        OpenAIBatchResultsToSQLOperator(
            task_id=kind,
            results=label.output,
            sql_conn_id=f"our_{kind}",
            table="labels",
            key="review_id",
            columns=COLUMNS,
            failed_table="labels_failed",
        )


sinks()
