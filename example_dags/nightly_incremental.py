"""Every night, answer only what is new: the run's data interval chooses the rows, and its path holds its results.

Clearing a run reads its rows again and buys only those that changed or failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from tempfile import gettempdir
from typing import Any

from airflow.sdk import Param, dag, task

TICKETS_PER_DAY = 8


@dag(
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=10)},
    tags=["openai-batches"],
    params={"outbox": Param(f"{gettempdir()}/openai-batches-outbox", type="string", description="Where answers go.")},
)
def nightly_incremental() -> None:
    """### New rows in, new answers out."""

    @task.openai_batch(
        model="gpt-4o-mini",
        system_prompt="Summarize the ticket in one sentence.",
        body={"max_completion_tokens": 100},
        output_path="{{ params.outbox }}/{{ dag.dag_id }}/{{ run_id }}",
        timeout=20 * 3600,
        max_failed=0.05,
        poll_interval=10,
    )
    def summarize(ds: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the day's tickets, here made up; a query with a cursor goes in this place."""
        for number in range(TICKETS_PER_DAY):
            ticket = f"{ds}-{number}"
            yield {"custom_id": ticket, "prompt": f"Ticket {ticket}: the printer is on fire.", "context": {"day": ds}}

    @task
    def report(manifest: dict[str, Any]) -> str:
        """Say how the night was."""
        return f"{manifest['succeeded']} of {manifest['requests']} tickets, {manifest['usage']['total_tokens']} tokens"

    report(summarize())


nightly_incremental()
