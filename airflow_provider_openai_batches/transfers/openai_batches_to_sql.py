"""Results of a job into a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.operators import parameters

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage


class OpenAIBatchResultsToSQLOperator(BaseOperator):
    """Writes the answers of a job into a table, by key. Run again it comes to the same.

    A row that is there is changed in the columns that are given and in no other; one that is not is added. Table,
    columns, key and types are looked at before anything is written.

    Rows that failed, and those that the table does not take, go to ``failed_table`` or ``failed_path``. Without either,
    failed rows are left out, and a row that the table does not take fails the task.

    Returns ``{"table", "stored", "failed", "not_storable"}``: numbers of rows.

    :param results: the job task's output, or the ``output_path`` of a job (templated)
    :param sql_conn_id: Airflow connection to a PostgreSQL, MySQL, MariaDB or SQLite database (templated)
    :param table: ``table`` or ``schema.table`` (templated)
    :param key: the column, or columns, that tell rows apart: the table's primary key or a unique constraint
    :param columns: where each column's value is in the result row, e.g. ``{"review_id": "context.id", "label":
        "output.label"}``
    :param insert_missing: add rows that are not there; False changes only those that are, and the others' answers are
        not stored
    :param failed_table: table for rows without a usable answer, in the same transactions (templated); created if it is
        not there. A row that is stored later leaves it
    :param failed_path: instead, a JSONL file for them, written anew each time (templated)
    :param rows_per_transaction: rows that are written, or not, together
    """

    template_fields: Sequence[str] = ("results", "sql_conn_id", "table", "failed_table", "failed_path")
    ui_color = "#d9f2ea"

    def __init__(
        self,
        *,
        results: Any,
        sql_conn_id: str,
        table: str,
        key: str | Sequence[str],
        columns: Mapping[str, str],
        insert_missing: bool = True,
        failed_table: str | None = None,
        failed_path: Any = None,
        rows_per_transaction: int = 1_000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.results = results
        self.sql_conn_id = sql_conn_id
        self.table = table
        self.key = key
        self.columns = columns
        self.insert_missing = parameters.flag(insert_missing, "insert_missing")
        self.failed_table = failed_table
        self.failed_path = failed_path
        if failed_table is not None and failed_path is not None:
            raise InvalidInputError("failed_path", "give one of failed_table and failed_path.")
        self.rows_per_transaction = parameters.count(rows_per_transaction, "rows_per_transaction")
        self._written: Any = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Write all rows."""
        from airflow_provider_openai_batches.lineage import Written, sql_place
        from airflow_provider_openai_batches.sql.database import open_database
        from airflow_provider_openai_batches.transfers.storing import Storing

        engine = open_database(self.sql_conn_id, "sql_conn_id")
        try:
            storing = Storing.prepare(
                engine,
                self.table,
                self.key,
                self.columns,
                insert_missing=self.insert_missing,
                failed_table=self.failed_table,
                failed_path=self.failed_path,
            )
            counts = storing.store(self.results, self.rows_per_transaction)
            self._written = Written(sql_place(engine, self.table), counts["stored"])
        finally:
            engine.dispose()
        self._tell(counts)
        return {"table": self.table, **counts}

    def _tell(self, counts: Mapping[str, int]) -> None:
        failed, refused = counts["failed"], counts["not_storable"]
        if not failed and not refused:
            self.log.info("%s: %s rows are stored.", self.table, f"{counts['stored']:,}")
            return
        letters = self.failed_table or self.failed_path
        self.log.warning(
            "%s: %s rows are stored; %s had no answer and %s could not be stored, which %s.",
            *(self.table, f"{counts['stored']:,}", f"{failed:,}", f"{refused:,}"),
            f"are in {letters}, with the reasons" if letters else "are left out",
        )

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Tell OpenLineage what was read and written."""
        from airflow_provider_openai_batches.lineage import lineage
        from airflow_provider_openai_batches.transfers.results import place_of

        return lineage(read=place_of(self.results), written=filter(None, [self._written]))
