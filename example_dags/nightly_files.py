"""Every night, one batch per request file that has arrived: dynamic task mapping over files.

Each file is its own chain of mapped tasks, so one bad file fails alone and is retried alone.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from tempfile import gettempdir
from typing import Any

from airflow.sdk import ObjectStoragePath, Param, XComArg, dag, task, task_group

from airflow_provider_openai_batches.operators.openai_batches import (
    OpenAIBatchDownloadOperator,
    OpenAIBatchSubmitOperator,
    OpenAIBatchUploadOperator,
)
from airflow_provider_openai_batches.sensors.openai_batches import OpenAIBatchSensor


@dag(
    schedule="0 22 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    tags=["openai-batches"],
    params={
        "inbox": Param(
            f"{gettempdir()}/openai-batches-inbox", type="string", description="Where *.jsonl files arrive."
        ),
        "outbox": Param(f"{gettempdir()}/openai-batches-outbox", type="string", description="Where answers go."),
        "endpoint": Param("/v1/chat/completions", type="string"),
    },
)
def nightly_files() -> None:
    """### One batch per file, all waiting at once, none of them in a worker slot."""

    @task
    def list_files(inbox: str) -> list[str]:
        """Return the files of tonight; no file, no mapped task."""
        return sorted(str(path) for path in ObjectStoragePath(inbox).glob("*.jsonl"))

    @task_group
    def answer(source: str) -> XComArg:
        """Take one file from requests to answers."""
        upload = OpenAIBatchUploadOperator(task_id="upload", source=source)
        submit = OpenAIBatchSubmitOperator(
            task_id="submit",
            input_file_id=upload.output,
            endpoint="{{ params.endpoint }}",
            metadata={"team": "search", "night": "{{ run_id }}"},
        )
        # All waits of a connection share one poll loop, so a short interval costs little.
        wait = OpenAIBatchSensor(task_id="wait", batch_id=submit.output, deferrable=True, poll_interval=10)
        download = OpenAIBatchDownloadOperator(
            task_id="download", batch_id=submit.output, output_path="{{ params.outbox }}/{{ run_id }}"
        )
        wait >> download
        return download.output

    @task
    def report(downloads: list[dict[str, Any]]) -> dict[str, int]:
        """Add up what came back."""
        counts = [download["request_counts"] for download in downloads]
        return {name: sum(count[name] for count in counts) for name in ("total", "completed", "failed")}

    report(answer.expand(source=list_files("{{ params.inbox }}")))


nightly_files()
