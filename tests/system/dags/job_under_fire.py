"""A job of three shards for the system tests; it notes each time its rows are read."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Param, dag, task

ROWS = 120


@dag(schedule=None, params={"directory": Param("", type="string")})
def job_under_fire() -> None:
    @task.openai_batch(
        model="gpt-4o-mini",
        output_path="{{ params.directory }}/labels",
        max_requests_per_batch=ROWS // 3,
        poll_interval=1,
        retries=2,
        retry_delay=timedelta(seconds=1),
    )
    def label(params: Any = None) -> Iterator[dict[str, Any]]:
        with Path(params["directory"], "reads").open("a") as notes:
            notes.write("read\n")
        for number in range(ROWS):
            yield {"prompt": f"row {number}", "context": {"number": number}}

    label()


job_under_fire()
