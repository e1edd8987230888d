"""One job per language with dynamic task mapping: each has its own directory, batches and retries."""

from __future__ import annotations

from tempfile import gettempdir
from typing import Any

from airflow.sdk import Param, dag, task

PHRASES = ["Good morning", "Where is the station?", "The bill, please"]


@dag(
    schedule=None,
    tags=["openai-batches"],
    params={"outbox": Param(f"{gettempdir()}/openai-batches-outbox", type="string", description="Where answers go.")},
)
def mapped_jobs() -> None:
    """### The same rows, many ways at once."""

    @task
    def languages() -> list[str]:
        """Return what to map over."""
        return ["French", "Swahili", "Finnish"]

    @task.openai_batch(
        model="gpt-4o-mini",
        output_path="{{ params.outbox }}/{{ dag.dag_id }}/{{ run_id }}/{{ ti.map_index }}",
        poll_interval=10,
    )
    def translate(language: str) -> list[str]:
        """Return plain prompts."""
        return [f"Translate into {language}: {phrase}" for phrase in PHRASES]

    @task
    def total(manifests: list[dict[str, Any]]) -> int:
        """Count the answers."""
        return sum(manifest["succeeded"] for manifest in manifests)

    total(translate.expand(language=languages()))


mapped_jobs()
