"""Rows that have no answer to use: what is told of them, in a table or a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.jobs.json_text import shown
from airflow_provider_openai_batches.transfers.storable import NotStorableError, exactly
from airflow_provider_openai_batches.transfers.upsert import Target, open_target, split_name

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_ID_CHARS, _NAME_CHARS = 512, 128
_KEY = ("target", "custom_id")
_COLUMNS = (*_KEY, "status", "error_code", "error_message", "batch_id", "attempts", "context")


def dead_letter(row: Mapping[str, Any], why_not: str | None = None) -> dict[str, Any]:
    """Return what is told of a row. Texts of the service may be of any length; they are cut.

    :param row: the result row
    :param why_not: why an answered row could not be stored; None for one that failed
    """
    error = row["error"] or {}
    return {
        "custom_id": row["custom_id"],
        "status": row["status"],
        "error_code": "not_storable" if why_not else _cut(error.get("code"), 100),
        "error_message": _cut(why_not or error.get("message"), 10_000),
        "batch_id": _cut(row["batch_id"], 200),
        "attempts": row["attempts"],
        "context": row["context"],
    }


def _cut(text: str | None, chars: int) -> str | None:
    # PostgreSQL's text cannot hold a NUL.
    return text if text is None else text[:chars].replace("\0", "\N{REPLACEMENT CHARACTER}")


@dataclass(frozen=True)
class LetterTable:
    """A table of dead letters: one row for each pair of target table and custom_id.

    :param target: what writes to it
    :param of: the table that the rows were meant for
    """

    target: Target
    of: str

    @classmethod
    def open(cls, engine: Engine, name: str, of: str) -> LetterTable:
        """Look at the table, and create it if it is not there.

        :raises InvalidInputError: there is one of that name, and letters cannot be written to it
        """
        _create(engine, name)
        return cls(open_target(engine, name, _KEY, _COLUMNS, param="failed_table"), of)

    def update(self, connection: Connection, letters: Sequence[Mapping[str, Any]], stored: Sequence[str]) -> None:
        """Write letters, and take those out whose rows have been stored by now.

        :param letters: from :func:`dead_letter`
        :param stored: custom_ids
        """
        from sqlalchemy import bindparam, select

        table = self.target.table
        ids = [_cut(custom_id, _ID_CHARS) for custom_id in stored]
        mine = (table.c.target == self.of) & table.c.custom_id.in_(bindparam("ids", expanding=True))
        # Looked for first: MySQL locks the place of each row that it does not find to delete, and so do others.
        if ids and (there := list(connection.execute(select(table.c.custom_id).where(mine), {"ids": ids}).scalars())):
            connection.execute(table.delete().where(mine), {"ids": there})
        rows = [self._row(letter) for letter in letters]
        for position, why_not in self.target.write(connection, rows).items():
            raise self._refused(letters[position], why_not)

    def _row(self, letter: Mapping[str, Any]) -> dict[str, Any]:
        values = {
            **letter,
            "target": self.of,
            "custom_id": _cut(letter["custom_id"], _ID_CHARS),
            "context": exactly(letter["context"]),
        }
        try:
            return self.target.storable(values)
        except NotStorableError as error:
            raise self._refused(letter, str(error)) from error

    def _refused(self, letter: Mapping[str, Any], why_not: str) -> InvalidInputError:
        return InvalidInputError(
            "failed_table", f"{self.target.table} does not take the letter of {shown(letter['custom_id'])}: {why_not}."
        )


def _create(engine: Engine, name: str) -> None:
    from sqlalchemy import JSON, Column, Integer, MetaData, String, Table, Text, inspect
    from sqlalchemy.dialects.mysql import VARCHAR
    from sqlalchemy.exc import SQLAlchemyError

    # MySQL and MariaDB take "a", "A" and "a " for the same otherwise.
    collation = "utf8mb4_nopad_bin" if getattr(engine.dialect, "is_mariadb", False) else "utf8mb4_0900_bin"

    def text(chars: int) -> Any:
        binary = VARCHAR(chars, charset="utf8mb4", collation=collation)
        return String(chars).with_variant(binary, "mysql").with_variant(binary, "mariadb")

    schema, table_name = split_name(name, "failed_table")
    table = Table(
        table_name,
        MetaData(),
        Column("target", text(_NAME_CHARS), primary_key=True),
        Column("custom_id", text(_ID_CHARS), primary_key=True),
        Column("status", String(20), nullable=False),
        Column("error_code", String(100)),
        Column("error_message", Text),
        Column("batch_id", String(200)),
        Column("attempts", Integer),
        Column("context", JSON),
        schema=schema,
    )
    try:
        table.create(engine, checkfirst=True)
    except SQLAlchemyError as error:
        # Another task may have made it just now.
        if not inspect(engine).has_table(table_name, schema=schema):
            reason = str(getattr(error, "orig", None) or error)
            raise InvalidInputError("failed_table", f"{name} is not there and cannot be created: {reason}") from error
