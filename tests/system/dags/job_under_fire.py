"""A job of three shards for the system tests, deferred or not; it notes each time its rows are read."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Param, dag, task

ROWS = 120


def job(dag_id: str, *, deferrable: bool) -> None:
    @dag(dag_id, schedule=None, params={"directory": Param("", type="string")})
    def build() -> None:
        @task.openai_batch(
            model="gpt-4o-mini",
            output_path="{{ params.directory }}/labels",
            max_requests_per_batch=ROWS // 3,
            poll_interval=1,
            deferrable=deferrable,
            conn_id="service",
            retries=2,
            retry_delay=timedelta(seconds=1),
        )
        def label(params: Any = None) -> Iterator[dict[str, Any]]:
            with Path(params["directory"], "reads").open("a") as notes:
                notes.write("read\n")
            for number in range(ROWS):
                yield {"prompt": f"row {number}", "context": {"number": number}}

        label()

    build()


job("job_under_fire", deferrable=True)
job("job_in_its_worker", deferrable=False)
