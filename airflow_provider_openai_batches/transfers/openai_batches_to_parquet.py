"""Results of a job into a partitioned Parquet data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_openai_batches.operators import parameters

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_openai_batches.lineage import Written


class OpenAIBatchResultsToParquetOperator(BaseOperator):
    """Writes the answers of a job into a Parquet data set. Run again it comes to the same.

    Partitions that the job has rows for are replaced as a whole, others stay as they are. All files are written on this
    machine's disk first. Then each appears whole; a partition of one file (up to 1,000,000 rows) changes in one step,
    one of several files by file, and the partitions one after the other. Two tasks that write the same partition of
    several files at once can leave a mixture of both.

    Returns ``{"path", "files", "stored", "failed"}``: the files' paths, and numbers of rows.

    :param results: the job task's output, or the ``output_path`` of a job (templated)
    :param path: directory or URI of the data set (templated)
    :param columns: where each column's value is in the result row, e.g. ``{"review_id": "context.id", "label":
        "output.label"}``. A column has the type that all its values have; what has none that keeps each of them is
        JSON text
    :param partition_by: columns of text or whole numbers that become folders, ``day=2026-11-20``; at most 500
        partitions. A value that a folder's name cannot hold is refused before anything is written. Choose what is the
        same whenever the job is run: an answer that changes would leave the row in its old partition, too
    :param failed_path: JSONL file for the rows that failed, written anew each time (templated)
    """

    template_fields: Sequence[str] = ("results", "path", "failed_path")
    ui_color = "#d9f2ea"

    def __init__(
        self,
        *,
        results: Any,
        path: Any,
        columns: Mapping[str, str],
        partition_by: Sequence[str] = (),
        failed_path: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.results = results
        self.path = path
        self.columns = columns
        self.partition_by = partition_by
        self.failed_path = failed_path
        self._written: list[Written] = []

    def execute(self, context: Context) -> dict[str, Any]:
        """Write all rows."""
        from airflow_provider_openai_batches.lineage import Written
        from airflow_provider_openai_batches.transfers.dataset import write_partitions
        from airflow_provider_openai_batches.transfers.files import letters_file

        partition_by = parameters.names(self.partition_by, "partition_by", "names of columns")
        with letters_file(self.failed_path) as write_letter:
            files, stored, failed = write_partitions(self.results, self.path, self.columns, partition_by, write_letter)
        self._written = [Written(str(self.path), stored, len(files))]
        self.log.info("%s: %s rows in %s files, %s rows failed", self.path, f"{stored:,}", len(files), f"{failed:,}")
        return {"path": str(self.path), "files": files, "stored": stored, "failed": failed}

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Tell OpenLineage what was read and written."""
        from airflow_provider_openai_batches.lineage import lineage
        from airflow_provider_openai_batches.transfers.results import place_of

        return lineage(read=place_of(self.results), written=self._written)
