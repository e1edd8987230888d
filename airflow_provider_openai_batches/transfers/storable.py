"""A value of a result row as a column of a table takes it, or the reason why it does not."""

from __future__ import annotations

import datetime
import decimal
import math
import re
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.jobs.json_text import shown

if TYPE_CHECKING:
    from sqlalchemy import Column

_MYSQL = ("mysql", "mariadb")
_DIGITS = re.compile("-?[0-9]{1,30}")
_MYSQL_TEXT_BYTES = {"TINYTEXT": 255, "TEXT": 65_535, "MEDIUMTEXT": 16_777_215}


class NotStorableError(ValueError):
    """What is wrong with one value, for one column."""


def storer(column: Column[Any], dialect: str) -> Callable[[Any], Any]:
    """Return what turns the JSON values of result rows into values of a column.

    :param column: as the database describes it
    :param dialect: SQLAlchemy's name of the kind of database
    :return: raises :class:`NotStorableError` for a value that the column would not take, or not without loss
    :raises InvalidInputError: no value can be written to such a column
    """
    from sqlalchemy import types as sql

    kinds: list[tuple[Any, Callable[[Any], Any]]] = [
        (sql.JSON, _same),
        (sql.Uuid, uuid.UUID),
        (sql.Boolean, _boolean),
        (sql.Integer, _integer(dialect)),
        (sql.Numeric, _number),
        (sql.Float, _number),  # Since SQLAlchemy 2.1 it is no Numeric.
        (sql.DateTime, _datetime(column)),
        (sql.Date, datetime.date.fromisoformat),
        (sql.Time, datetime.time.fromisoformat),
        (sql.Enum, _choice(column)),
        (sql.String, _text(column, dialect)),
        (sql.ARRAY, _list),
        # A type that SQLAlchemy does not know, such as pgvector's. The database reads it from text.
        (sql.NullType, _json_text),
    ]
    convert = next((convert for kind, convert in kinds if isinstance(column.type, kind)), None)
    if convert is None:
        raise InvalidInputError(
            "columns", f"the column {column.name!r} is of type {column.type}, which cannot be written. Leave it out."
        )

    def store(value: Any) -> Any:
        if value is None:
            if not column.nullable:
                raise NotStorableError(f"{column.name!r} takes no NULL")
            return None
        try:
            return convert(value)
        except NotStorableError as error:
            raise NotStorableError(f"{column.name!r} ({column.type}) {error}") from error
        except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
            raise NotStorableError(f"{column.name!r} is of type {column.type}, which {shown(value)} is not") from error

    return store


def _same(value: Any) -> Any:
    return value


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise TypeError


def _integer(dialect: str) -> Callable[[Any], int]:
    # MySQL's BOOLEAN is a TINYINT.
    takes_booleans = dialect in _MYSQL

    def convert(value: Any) -> int:
        if isinstance(value, bool) and not takes_booleans:
            raise TypeError
        if isinstance(value, int) or (isinstance(value, str) and _DIGITS.fullmatch(value)):
            return int(value)
        raise TypeError

    return convert


def _number(value: Any) -> decimal.Decimal | float | int:
    number = decimal.Decimal(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not math.isfinite(number):
        raise TypeError
    return number


def _datetime(column: Column[Any]) -> Callable[[Any], datetime.datetime]:
    has_zone = getattr(column.type, "timezone", False)

    def convert(value: Any) -> datetime.datetime:
        moment = datetime.datetime.fromisoformat(value)
        if moment.tzinfo is not None and not has_zone:
            # Some drivers would drop the zone, others use the session's.
            moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
        return moment

    return convert


def _text(column: Column[Any], dialect: str) -> Callable[[Any], str]:
    most_chars = getattr(column.type, "length", None)
    most_bytes = _MYSQL_TEXT_BYTES.get(type(column.type).__name__) if dialect in _MYSQL else None

    def convert(value: Any) -> str:
        text = value if isinstance(value, str) else _json_text(value)
        if most_chars is not None and len(text) > most_chars:
            raise NotStorableError(f"takes {most_chars:,} characters, not {len(text):,}")
        if most_bytes is not None and len(text.encode()) > most_bytes:
            raise NotStorableError(f"takes {most_bytes:,} bytes, not {len(text.encode()):,}")
        if "\0" in text and dialect == "postgresql":
            raise NotStorableError("takes no NUL character")
        return text

    return convert


def _choice(column: Column[Any]) -> Callable[[Any], str]:
    choices = getattr(column.type, "enums", ())

    def convert(value: Any) -> str:
        if value not in choices:
            raise NotStorableError(f"takes {', '.join(choices)}, not {shown(value)}")
        return str(value)

    return convert


def _list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    raise TypeError


def _json_text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
