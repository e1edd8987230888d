"""Embeddings of a table into Parquet: the rows come from a CSV file, the vectors go beside its columns."""

from __future__ import annotations

import csv
from tempfile import gettempdir
from typing import Any

from airflow.sdk import ObjectStoragePath, Param, dag, task

from airflow_provider_openai_batches.operators.openai_batches import OpenAIBatchOperator


@dag(
    schedule=None,
    tags=["openai-batches"],
    params={"outbox": Param(f"{gettempdir()}/openai-batches-outbox", type="string", description="Where answers go.")},
)
def embed_table() -> None:
    """### A column becomes vectors."""
    run_directory = "{{ params.outbox }}/{{ dag.dag_id }}/{{ run_id }}"

    @task
    def export_products(directory: str) -> str:
        """Write the table: `input` is what is embedded, every other column comes back as context."""
        path = ObjectStoragePath(directory) / "products.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["custom_id", "input", "price"])
            table.writerows((f"sku-{number}", f"Product number {number}", number * 1.5) for number in range(20))
        return str(path)

    embed = OpenAIBatchOperator(
        task_id="embed",
        requests=export_products(run_directory),
        endpoint="/v1/embeddings",
        model="text-embedding-3-small",
        output_path=f"{run_directory}/vectors",
        output_format="parquet",
        poll_interval=10,
    )

    @task
    def measure(manifest: dict[str, Any]) -> int:
        """Return the vectors' length."""
        from airflow_provider_openai_batches.results import read_results

        return len(next(read_results(manifest))["output"])

    measure(embed.output)


embed_table()
