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
    from sqlalchemy.types import TypeEngine

    Convert = Callable[[Any], Any]

_MYSQL = ("mysql", "mariadb")
_DIGITS = re.compile("-?[0-9]{1,30}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_MYSQL_TEXT_BYTES = {"TINYTEXT": 255, "TEXT": 65_535, "MEDIUMTEXT": 16_777_215}
_LEAST, _MOST = -(2**63), 2**64 - 1
"""The whole numbers that a database's own JSON can be relied on to keep."""


_NO_SUCH_VALUE = (ValueError, TypeError, AttributeError, ArithmeticError)


class NotStorableError(Exception):
    """What is wrong with one value, for one column."""


def storer(column: Column[Any], dialect: str, *, in_key: bool = False, json_text: bool = False) -> Convert:
    """Return what turns the JSON values of result rows into values of a column.

    :param column: as the database describes it
    :param dialect: SQLAlchemy's name of the kind of database
    :param in_key: it is one of those that tell rows apart
    :param json_text: its text is JSON, as MariaDB has it
    :return: raises :class:`NotStorableError` for a value that the column would not take, or not without loss
    :raises InvalidInputError: no value can be written to such a column
    """
    convert = _as_json if json_text else _converter(column.type, dialect)
    if convert is None:
        of_type = 'name or "char"' if _is_for_catalogs(column.type, dialect) else column.type
        raise InvalidInputError(
            "columns", f"the column {column.name!r} is of type {of_type}, which cannot be written. Leave it out."
        )

    def store(value: Any) -> Any:
        if value is None:
            if in_key:
                # To a unique constraint it is like no other NULL, so that each run would add a row.
                raise NotStorableError(f"{column.name!r} is NULL, and the key: the row could not be found again")
            if not column.nullable:
                raise NotStorableError(f"{column.name!r} takes no NULL")
            return None
        try:
            return convert(value)
        except NotStorableError as error:
            raise NotStorableError(f"{column.name!r} ({column.type}) {error}") from error
        except _NO_SUCH_VALUE as error:
            raise NotStorableError(f"{column.name!r} is of type {column.type}, which {shown(value)} is not") from error

    return store


def _converter(kind: TypeEngine[Any], dialect: str) -> Convert | None:
    """Return what converts values, but no None, for columns of a type, and array elements; None if nothing does."""
    from sqlalchemy import types as sql
    from sqlalchemy.dialects import mysql

    if _is_for_catalogs(kind, dialect):
        return None
    kinds: list[tuple[Any, Callable[[], Convert | None]]] = [
        # MariaDB's is text. MySQL's has numbers of 64 bits, whole or not.
        (sql.JSON, lambda: _json_of_64_bits if dialect in _MYSQL else _same),
        (sql.Uuid, lambda: uuid.UUID),
        (sql.Boolean, lambda: _boolean),
        (sql.Integer, lambda: _integer(dialect)),
        (sql.Float, lambda: _float(kind)),  # Up to SQLAlchemy 2.0 it is a Numeric, too.
        (sql.Numeric, lambda: _decimal(kind)),
        (sql.DateTime, lambda: _datetime(kind)),
        (sql.Date, lambda: datetime.date.fromisoformat),
        (sql.Time, lambda: _time(kind)),
        (sql.Enum, lambda: _choice(kind)),
        (mysql.SET, lambda: _members(kind)),
        (sql.String, lambda: _text(kind, dialect)),
        (sql.ARRAY, lambda: _list(kind, dialect)),
        # A type that SQLAlchemy does not know, such as pgvector's. The database reads it from text.
        (sql.NullType, lambda: _json_text),
    ]
    return next((make() for known, make in kinds if isinstance(kind, known)), None)


def _is_for_catalogs(kind: TypeEngine[Any], dialect: str) -> bool:
    """Whether a type is PostgreSQL's ``name`` or ``"char"``, which cut longer text. All others have a class."""
    from sqlalchemy.types import String

    return dialect == "postgresql" and type(kind) is String


def _same(value: Any) -> Any:
    return value


def _json_of_64_bits(value: Any) -> Any:
    if exactly(value) != value:
        raise NotStorableError(f"takes whole numbers from {_LEAST:,} to {_MOST:,}, and there is another in it")
    return value


def exactly(value: Any) -> Any:
    """Return a JSON value with those whole numbers as text that a database's own JSON would round."""
    if isinstance(value, int):
        return value if _LEAST <= value <= _MOST else str(value)
    if isinstance(value, list):
        return [exactly(part) for part in value]
    if isinstance(value, dict):
        return {name: exactly(part) for name, part in value.items()}
    return value


def _as_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _json_text(value: Any) -> str:
    return value if isinstance(value, str) else _as_json(value)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise TypeError


def _integer(dialect: str) -> Convert:
    # MySQL's BOOLEAN is a TINYINT.
    takes_booleans = dialect in _MYSQL

    def convert(value: Any) -> int:
        if isinstance(value, bool) and not takes_booleans:
            raise TypeError
        if isinstance(value, int) or (isinstance(value, str) and _DIGITS.fullmatch(value)):
            return int(value)
        raise TypeError

    return convert


def _decimal(kind: Any) -> Convert:
    precision, scale = kind.precision, kind.scale

    def convert(value: Any) -> decimal.Decimal:
        number = _number(value)
        if scale is not None:
            _, digits, exponent = number.as_tuple()
            written = "".join(map(str, digits)).lstrip("0")
            decimals = -int(exponent) - len(written) + len(written.rstrip("0"))
            if written and decimals > scale:
                raise NotStorableError(f"takes {scale} decimals, not {decimals}")
            if precision is not None and len(written) + int(exponent) > precision - scale:
                raise NotStorableError(f"takes {precision - scale} digits before the point")
        return number

    return convert


def _float(kind: Any) -> Convert:
    # Only MySQL has such with a number of decimals.
    fits = _decimal(kind)

    def convert(value: Any) -> float:
        return float(fits(value))

    return convert


def _number(value: Any) -> decimal.Decimal:
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value):
            raise TypeError
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    # What a float's own text says is what the JSON said.
    number = decimal.Decimal(value if isinstance(value, (str, int)) else repr(value))
    if not math.isfinite(float(number)):
        raise TypeError
    return number


def _datetime(kind: Any) -> Convert:
    has_zone = getattr(kind, "timezone", False)

    def convert(value: Any) -> datetime.datetime:
        moment = datetime.datetime.fromisoformat(value)
        # Where column and value differ, some drivers would drop the zone, others take the session's.
        moment = moment.replace(tzinfo=datetime.UTC) if moment.tzinfo is None else moment.astimezone(datetime.UTC)
        return moment if has_zone else moment.replace(tzinfo=None)

    return convert


def _time(kind: Any) -> Convert:
    has_zone = getattr(kind, "timezone", False)

    def convert(value: Any) -> datetime.time:
        time = datetime.time.fromisoformat(value)
        if has_zone:
            return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
        if time.tzinfo:
            raise NotStorableError("takes no time with a zone")
        return time

    return convert


def _text(kind: Any, dialect: str) -> Convert:
    most_chars = getattr(kind, "length", None)
    most_bytes = _MYSQL_TEXT_BYTES.get(type(kind).__name__) if dialect in _MYSQL else None

    def convert(value: Any) -> str:
        text = _json_text(value)
        if most_chars is not None and len(text) > most_chars:
            raise NotStorableError(f"takes {most_chars:,} characters, not {len(text):,}")
        if most_bytes is not None and len(text.encode()) > most_bytes:
            raise NotStorableError(f"takes {most_bytes:,} bytes, not {len(text.encode()):,}")
        if "\0" in text and dialect == "postgresql":
            raise NotStorableError("takes no NUL character")
        return text

    return convert


def _choice(kind: Any) -> Convert:
    choices = getattr(kind, "enums", ())

    def convert(value: Any) -> str:
        if value not in choices:
            raise NotStorableError(f"takes {', '.join(choices)}, not {shown(value)}")
        return str(value)

    return convert


def _members(kind: Any) -> Convert:
    choices = kind.values

    def convert(value: Any) -> str:
        members = [each for each in value.split(",") if each] if isinstance(value, str) else value
        if not isinstance(members, list) or not all(each in choices for each in members):
            raise NotStorableError(f"takes some of {', '.join(choices)}, not {shown(value)}")
        return ",".join(members)

    return convert


def _list(kind: Any, dialect: str) -> Convert | None:
    element = _converter(kind.item_type, dialect)
    if element is None:
        return None

    def one(part: Any) -> Any:
        try:
            return None if part is None else element(part)
        except _NO_SUCH_VALUE as error:
            raise NotStorableError(f"has elements of type {kind.item_type}, which {shown(part)} is not") from error

    def convert(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise TypeError
        nested = any(isinstance(part, list) for part in value)  # Another dimension.
        return [convert(part) if nested else one(part) for part in value]

    return convert
