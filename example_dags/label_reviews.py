"""Label a table with a Pydantic model: rows in, validated labels out, each beside the columns it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import gettempdir
from typing import Any, Literal

from airflow.sdk import Param, dag, task
from pydantic import BaseModel, Field

from airflow_provider_openai_batches.results import read_results

REVIEWS = [
    {"id": 1, "text": "Arrived two weeks late and the box was open."},
    {"id": 2, "text": "My daughter has not put it down since Sunday!"},
    {"id": 3, "text": "It is a lamp. It gives light. {{ No complaints }}."},
    {"id": 4, "text": "Refund took three calls, then it came within the hour."},
]


class Label(BaseModel):
    """What the model has to say about a review."""

    topic: Literal["delivery", "product", "service"]
    sentiment: Literal["positive", "neutral", "negative"]
    reason: str = Field(description="One short sentence.")


@dag(
    schedule=None,
    tags=["openai-batches"],
    params={"outbox": Param(f"{gettempdir()}/openai-batches-outbox", type="string", description="Where answers go.")},
)
def label_reviews() -> None:
    """### From rows to labels in one task."""

    @task.openai_batch(
        model="gpt-4o-mini",
        system_prompt="You label customer reviews.",
        output_type=Label,
        output_path="{{ params.outbox }}/{{ dag.dag_id }}/{{ run_id }}",
        max_failed=0.01,
        poll_interval=10,
    )
    def label() -> Iterator[dict[str, Any]]:
        """Yield one row per review; `context` is what comes back beside the answer."""
        for review in REVIEWS:
            yield {"custom_id": f"review-{review['id']}", "prompt": review["text"], "context": {"id": review["id"]}}

    @task
    def count_by_topic(manifest: dict[str, Any]) -> dict[str, int]:
        """Read the rows lazily; there may be a million."""
        counts: dict[str, int] = {}
        for row in read_results(manifest):
            if row["status"] == "succeeded":
                topic = row["output"]["topic"]
                counts[topic] = counts.get(topic, 0) + 1
        return counts

    count_by_topic(label())


label_reviews()
