"""DAGs that no clock starts: one when a job's results are there, one whenever a batch ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from tempfile import gettempdir
from typing import Any

from airflow.sdk import Asset, AssetAlias, AssetWatcher, Param, dag, task

from airflow_provider_openai_batches.results import read_results
from airflow_provider_openai_batches.triggers.openai_batch_finished import OpenAIBatchFinishedTrigger

TICKETS = ("The app logs me out.", "How do I export my data?", "Please delete my account.")

# The results of each run are in a place of their own: an alias stands for all of them.
LABELS = AssetAlias("ticket_labels")

# Asks OpenAI which batches have ended: of this DAG, whether they were completed, failed, expired or cancelled.
ENDED = Asset(
    "ticket_batches_ended",
    watchers=[
        AssetWatcher(
            name="openai_batches", trigger=OpenAIBatchFinishedTrigger(dag_id="label_tickets", poll_interval=10)
        )
    ],
)

AssetEvents = Mapping[Any, list[Any]]


@dag(
    schedule=None,
    tags=["openai-batches"],
    params={"outbox": Param(f"{gettempdir()}/openai-batches-outbox", type="string", description="Where answers go.")},
)
def label_tickets() -> None:
    """### A job that says when its results are there."""

    @task.openai_batch(
        model="gpt-4o-mini",
        system_prompt="Name the topic of this support ticket in one word.",
        output_path="{{ params.outbox }}/{{ dag.dag_id }}/{{ run_id }}",
        outlets=[LABELS],
        poll_interval=10,
    )
    def label() -> Iterator[dict[str, Any]]:
        """Yield one row per ticket."""
        for number, ticket in enumerate(TICKETS):
            yield {"custom_id": f"ticket-{number}", "prompt": ticket}

    label()


@dag(schedule=[LABELS], tags=["openai-batches"])
def count_ticket_labels() -> None:
    """### Starts when labels are there."""

    @task
    def count(triggering_asset_events: AssetEvents) -> int:
        """Read the rows that started this run; an event knows where they are."""
        rows = [row for event in triggering_asset_events[LABELS] for row in read_results(event.extra)]
        return sum(row["status"] == "succeeded" for row in rows)

    count()


@dag(schedule=[ENDED], tags=["openai-batches"])
def note_ended_batches() -> None:
    """### Starts when a batch of `label_tickets` ends, however it ends."""

    @task
    def note(triggering_asset_events: AssetEvents) -> dict[str, str]:
        """Return how the batches ended; one run may be for several."""
        ended = [event.extra["payload"] for event in triggering_asset_events[ENDED]]
        return {batch["batch_id"]: batch["status"] for batch in ended}

    note()


label_tickets()
count_ticket_labels()
note_ended_batches()
