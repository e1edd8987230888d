"""A job that next to never looks for its batch, and DAGs that start when webhooks say that a batch has ended."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, Param, dag, task

from airflow_provider_openai_batches.assets import webhook_asset
from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator

TOLD, LIED_TO = "told", "lied_to"
"""Connections: OpenAI knows the secret of one, and somebody else claims to speak for the other."""

HOUR_S = 3600


@dag(schedule=None, params={"directory": Param("", type="string"), "conn_id": Param("", type="string")})
def wait_for_an_hour() -> None:
    OpenAIBatchOperator(
        task_id="label",
        requests=[f"row {number}" for number in range(5)],
        model="gpt-4o-mini",
        output_path="{{ params.directory }}/{{ params.conn_id }}",
        poll_interval=HOUR_S,
        conn_id="{{ params.conn_id }}",
        # Airflow takes a task for dead that is back before its executor has reported it gone.
        retries=2,
        retry_delay=timedelta(seconds=1),
    )


def started_by(conn_id: str) -> None:
    said = webhook_asset(conn_id)

    @dag(f"started_by_{conn_id}", schedule=[said], is_paused_upon_creation=False)
    def build() -> None:
        @task
        def note(triggering_asset_events: Mapping[Asset, list[Any]]) -> list[dict[str, Any]]:
            return [event.extra for event in triggering_asset_events[said]]

        note()

    build()


wait_for_an_hour()
started_by(TOLD)
started_by(LIED_TO)
