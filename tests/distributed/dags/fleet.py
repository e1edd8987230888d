"""Jobs that wait in the triggerer, and one that waits in its worker; their results go to S3."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task

from tests.distributed.workload import BY_DAG, Work


def job(work: Work) -> None:
    """Make the task of a job."""

    @task.openai_batch(
        task_id=work.task_id,
        model=work.model,
        endpoint=work.endpoint,
        output_path=f"s3://s3_test@jobs/{{{{ params.name }}}}/{work.task_id}",
        max_requests_per_batch=work.shard_rows,
        max_failed=0.01,
        poll_interval=2,
        deferrable=work.deferrable,
        retries=10,
        retry_delay=timedelta(seconds=1),
    )
    def requests(params: Any = None) -> Iterator[dict[str, Any]]:
        return work.requests(params["name"])

    requests()


for dag_id, works in BY_DAG.items():
    with DAG(dag_id, schedule=None, params={"name": Param("", type="string")}):
        for work in works:
            job(work)
