"""The rows of a job into a table and its dead letters, some rows a transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_provider_openai_batches.api.errors import InvalidInputError, OpenAIBatchesError
from airflow_provider_openai_batches.jobs.json_text import shown
from airflow_provider_openai_batches.operators import parameters
from airflow_provider_openai_batches.transfers.columns import parse_columns, value_at
from airflow_provider_openai_batches.transfers.dead_letters import LetterTable, dead_letter
from airflow_provider_openai_batches.transfers.files import letters_file
from airflow_provider_openai_batches.transfers.results import rows_of
from airflow_provider_openai_batches.transfers.storable import NotStorableError
from airflow_provider_openai_batches.transfers.upsert import Target, open_target

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    Row = dict[str, Any]


@dataclass(frozen=True)
class Storing:
    """A table that is ready for the rows of a job.

    :param paths: where in a result row each column's value is
    :param letters: table for the rows that are not stored
    :param failed_path: file for them
    """

    engine: Engine
    target: Target
    paths: Mapping[str, tuple[str, ...]]
    letters: LetterTable | None
    failed_path: Any

    @classmethod
    def prepare(
        cls,
        engine: Engine,
        table: str,
        key: str | Sequence[str],
        columns: Mapping[str, str],
        *,
        insert_missing: bool,
        failed_table: str | None,
        failed_path: Any,
    ) -> Storing:
        """Look at the tables. Nothing is written yet, but a table of dead letters is made if there is none.

        :raises InvalidInputError: they cannot take such rows
        """
        paths = parse_columns(columns)
        key = parameters.names(key, "key", "a column, or a list of columns")
        target = open_target(engine, table, key, paths, insert_missing=insert_missing)
        letters = None if failed_table is None else LetterTable.open(engine, failed_table, of=table)
        return cls(engine, target, paths, letters, failed_path)

    def store(self, results: Any, rows_per_transaction: int) -> dict[str, int]:
        """Write all rows; return how many came to what.

        :param results: a manifest, or the ``output_path`` of a job
        """
        from sqlalchemy.exc import SQLAlchemyError

        rows = rows_of(results)
        counts: Counter[str] = Counter(stored=0, failed=0, not_storable=0)
        with letters_file(self.failed_path) as write_letter, self.engine.connect() as connection:
            while chunk := list(islice(rows, rows_per_transaction)):
                try:
                    with connection.begin():
                        self.target.begin(connection)
                        self._store_chunk(connection, chunk, counts, write_letter)
                except SQLAlchemyError as error:
                    first, last = chunk[0]["index"], chunk[-1]["index"]
                    raise OpenAIBatchesError(
                        f"Rows {first:,} to {last:,} could not be written to {self.target.table}: {error}. Those "
                        "before are stored; the next attempt writes all again, to the same end."
                    ) from error
        return dict(counts)

    def _store_chunk(
        self,
        connection: Connection,
        chunk: Sequence[Row],
        counts: Counter[str],
        write_letter: Callable[[Mapping[str, Any]], None],
    ) -> None:
        good: list[Row] = []
        values: list[Row] = []
        letters: list[Row] = []

        def give_up(row: Row, why_not: str) -> None:
            if self.letters is None and self.failed_path is None:
                raise InvalidInputError(
                    "results",
                    f"row {row['index']} ({shown(row['custom_id'])}) cannot be stored: {why_not}. With failed_table or "
                    "failed_path such rows would go there, and the others be stored.",
                )
            counts["not_storable"] += 1
            letters.append(dead_letter(row, why_not))

        for row in chunk:
            if row["status"] != "succeeded":
                counts["failed"] += 1
                letters.append(dead_letter(row))
                continue
            try:
                values.append(self.target.storable({name: value_at(row, path) for name, path in self.paths.items()}))
            except NotStorableError as error:
                give_up(row, str(error))
            else:
                good.append(row)
        refused = self.target.write(connection, values)
        for position, why_not in refused.items():
            give_up(good[position], why_not)
        stored = [row["custom_id"] for position, row in enumerate(good) if position not in refused]
        counts["stored"] += len(stored)
        if self.letters is not None:
            self.letters.update(connection, letters, stored)
        for letter in letters:
            write_letter(letter)
