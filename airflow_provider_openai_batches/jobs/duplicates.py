"""Rows of one job that ask the same: the first is bought, and what comes of it is the result of all."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from airflow_provider_openai_batches.jobs.json_text import encode
from airflow_provider_openai_batches.jobs.requests import Request
from airflow_provider_openai_batches.jobs.results import ResultRow
from airflow_provider_openai_batches.jobs.scratch import scratch


def duplicates_file(plan: str) -> str:
    """Name the file with the rows of a plan that ask what an earlier one asks, in input order."""
    return f"_job/plan-{plan}.duplicates.jsonl"


class FirstRows:
    """Which row was the first to ask something."""

    def __init__(self, table: sqlite3.Connection) -> None:
        self._table = table

    def note(self, key: bytes, index: int) -> int | None:
        """Note what a row asks; return the index of the row that asks the same and came first, if there is one.

        :param key: of the request's content
        :param index: the row's; each call's is higher than the one before
        """
        if self._table.execute("INSERT OR IGNORE INTO firsts VALUES (?, ?)", (key, index)).rowcount:
            return None
        found: int = self._table.execute("SELECT row FROM firsts WHERE key = ?", (key,)).fetchone()[0]
        return found


@contextmanager
def first_rows() -> Iterator[FirstRows]:
    """Begin to note what rows ask."""
    with scratch("CREATE TABLE firsts (key BLOB PRIMARY KEY, row INTEGER) WITHOUT ROWID") as table:
        yield FirstRows(table)


def duplicate_line(request: Request, original: int) -> bytes:
    """Write down a row that is not sent.

    :param original: index of the row whose outcome it gets
    """
    context = b"null" if request.context is None else request.context
    parts = (request.index, encode(request.custom_id), context, original, encode(request.model))
    return b'{"index":%d,"custom_id":%b,"context":%b,"original":%d,"model":%b}\n' % parts


def with_duplicates(
    rows: Iterator[ResultRow], path: Path, told: Callable[[str, ResultRow, ResultRow], None]
) -> Iterator[ResultRow]:
    """Add the rows that were not sent to those that have an outcome, in input order.

    An outcome's tokens are counted once, where they were bought.

    :param rows: all others, in input order
    :param path: local copy of :func:`duplicates_file`
    :param told: is told of each row that is added: its model, itself, and the row whose outcome it has
    """
    originals_table = "CREATE TABLE originals (row INTEGER PRIMARY KEY)"
    outcomes_table = "CREATE TABLE outcomes (row INTEGER PRIMARY KEY, outcome BLOB)"
    with scratch(originals_table, outcomes_table) as table, path.open("rb") as lines:
        with path.open("rb") as ahead:
            needed = ((_decoder.decode(line).original,) for line in ahead)
            table.executemany("INSERT OR IGNORE INTO originals VALUES (?)", needed)
        originals = (row for (row,) in table.execute("SELECT row FROM originals ORDER BY row"))
        duplicates = map(_decoder.decode, lines)
        original, duplicate = next(originals, None), next(duplicates, None)

        def added(duplicate: _Duplicate) -> ResultRow:
            query = "SELECT outcome FROM outcomes WHERE row = ?"
            outcome = _outcome_decoder.decode(table.execute(query, (duplicate.original,)).fetchone()[0])
            row = msgspec.structs.replace(
                outcome,
                custom_id=duplicate.custom_id,
                index=duplicate.index,
                context=duplicate.context,
                usage=None,
                attempts=0,
            )
            told(duplicate.model, row, outcome)
            return row

        for row in rows:
            while duplicate is not None and duplicate.index < row.index:
                yield added(duplicate)
                duplicate = next(duplicates, None)
            if row.index == original:
                table.execute("INSERT INTO outcomes VALUES (?, ?)", (row.index, msgspec.json.encode(row)))
                original = next(originals, None)
            yield row
        while duplicate is not None:
            yield added(duplicate)
            duplicate = next(duplicates, None)


class _Duplicate(msgspec.Struct):
    index: int
    custom_id: str
    context: msgspec.Raw
    original: int
    model: str


class _Outcome(ResultRow, kw_only=True):
    """A row whose output is passed through as it is."""

    output: msgspec.Raw


_decoder = msgspec.json.Decoder(_Duplicate)
_outcome_decoder = msgspec.json.Decoder(_Outcome)
