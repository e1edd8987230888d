"""Rows into a table, by key: a row that is there is changed in the columns that are given, one that is not is added."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.api.inputs import check_text
from airflow_provider_openai_batches.transfers.refusals import RefusedError, attempt
from airflow_provider_openai_batches.transfers.storable import storer

if TYPE_CHECKING:
    from sqlalchemy import BindParameter, Connection, Engine, Inspector, Select, Table
    from sqlalchemy.sql.dml import UpdateBase

_MYSQL = ("mysql", "mariadb")
_DIALECTS = ("postgresql", *_MYSQL, "sqlite")
_LAST_KNOWN_MYSQL = (9,)
_NO_SUCH_ROW = "there is no row with this key"


@dataclass(frozen=True)
class Target:
    """A table that has been looked at, and what writes to it.

    :param table: as the database describes it
    :param storers: what turns values into those of each column
    :param order: what to sort rows by, so that two that write the same rows do not wait for each other; None where the
        database may take keys for the same that differ
    :param lookup: finds which of some keys there are; None if rows that are not there are added
    """

    table: Table
    storers: Mapping[str, Callable[[Any], Any]]
    statement: UpdateBase
    order: Callable[[Mapping[str, Any]], Any] | None
    lookup: Lookup | None

    def storable(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row's values as the table takes them.

        :raises NotStorableError: it does not take one of them
        """
        return {f"new_{name}": store(values[name]) for name, store in self.storers.items()}

    def begin(self, connection: Connection) -> None:
        """Let the session take values as :meth:`storable` has them. To be called first in each transaction."""
        dialect = connection.dialect.name
        if dialect == "sqlite":
            # Its driver would begin at the first INSERT, within the savepoint, which would then be all there is.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        elif dialect in _MYSQL:
            # It would cut, round and replace otherwise, if it is set up so.
            connection.exec_driver_sql("SET SESSION sql_mode = CONCAT_WS(',', @@sql_mode, 'STRICT_ALL_TABLES')")
            if any(self.table.columns[name].type.__visit_name__ == "TIMESTAMP" for name in self.storers):
                # Moments are given in UTC, and it would read them by the session's zone.
                connection.exec_driver_sql("SET SESSION time_zone = '+00:00'")

    def write(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
        """Write rows from :meth:`storable` within a transaction.

        :return: why some of them are not written, by position: no row to change; whatever the database says to a row
            alone, such as a foreign key, a check or a trigger
        """
        if not rows:
            return {}
        positions: Sequence[int] = range(len(rows))
        if (order := self.order) is not None:
            # Of rows with the same key the last one stays the last.
            positions = sorted(positions, key=lambda position: order(rows[position]))
        try:
            absent = self._write(connection, [rows[position] for position in positions])
        except RefusedError:
            pass
        else:
            return {positions[number]: _NO_SUCH_ROW for number in absent}
        refused = {}
        # In their own order, for one may refer to another.
        for position, row in enumerate(rows):
            try:
                if self._write(connection, [row]):
                    refused[position] = _NO_SUCH_ROW
            except RefusedError as error:
                refused[position] = str(error)
        return refused

    def _write(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> Collection[int]:
        """Write all rows but those that are not there to be changed; return the positions of these."""
        with attempt(connection):
            absent = set() if self.lookup is None else self.lookup.absent(connection, rows)
            if present := [row for position, row in enumerate(rows) if position not in absent]:
                connection.execute(self.statement, present)
        return absent


@dataclass(frozen=True)
class Lookup:
    """Finds which rows there are.

    :param names: of the key's values in rows
    :param among: selects those keys of some that there are
    :param one: selects something if there is a row of one key
    """

    names: Sequence[str]
    among: Select[Any]
    one: Select[Any]

    @classmethod
    def by(cls, table: Table, key: Sequence[str]) -> Lookup:
        """Look by a key."""
        from sqlalchemy import bindparam, literal, select, tuple_

        columns = [table.columns[name] for name in key]
        what = columns[0] if len(columns) == 1 else tuple_(*columns)
        values = _values(table, list(key))
        return cls(
            [f"new_{name}" for name in key],
            select(*columns).where(what.in_(bindparam("keys", expanding=True))),
            select(literal(1)).where(*(table.columns[name] == values[name] for name in key)).limit(1),
        )

    def absent(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> set[int]:
        """Return the positions of rows that there are not."""
        keys = [tuple(row[name] for name in self.names) for row in rows]
        given = [key[0] for key in keys] if len(self.names) == 1 else keys
        found = {repr(tuple(row)) for row in connection.execute(self.among, {"keys": given})}
        # The database may have written one otherwise: padded, or in other letters. So it is asked what is the same.
        return {
            position
            for position, key in enumerate(keys)
            if repr(key) not in found
            and connection.execute(self.one, dict(zip(self.names, key, strict=True))).first() is None
        }


def open_target(
    engine: Engine,
    name: str,
    key: Sequence[str],
    columns: Collection[str],
    *,
    insert_missing: bool = True,
    param: str = "table",
) -> Target:
    """Look at a table, and see that rows can be written to it.

    :param engine: the database
    :param name: ``table`` or ``schema.table``
    :param key: the columns that tell rows apart
    :param columns: all columns to write, the key's among them
    :param insert_missing: whether rows that are not there are added
    :param param: what to name in an error
    :raises InvalidInputError: no, with the reason and the remedy
    """
    from sqlalchemy import MetaData, Table, inspect
    from sqlalchemy.exc import NoSuchTableError, SAWarning

    dialect = engine.dialect.name
    if dialect not in _DIALECTS:
        raise InvalidInputError(
            "sql_conn_id",
            f"{dialect} is not among the databases that can be written to: {', '.join(_DIALECTS)}. Read the rows with "
            "read_results() in a task of your own, and write them with the hook of your database.",
        )
    if dialect in _MYSQL:
        _let_see_vectors(engine.dialect)
    _check_names(key)
    schema, table_name = split_name(name, param)
    with warnings.catch_warnings():
        # Of types that it does not know, such as pgvector's. It need not: see storable.py.
        warnings.simplefilter("ignore", SAWarning)
        inspector = inspect(engine)
        try:
            table = Table(table_name, MetaData(), schema=schema, autoload_with=engine, resolve_fks=False)
        except NoSuchTableError as error:
            raise InvalidInputError(param, f"there is no table {name!r} in {engine.url.database!r}.") from error
        if missing := [column for column in columns if column not in table.columns]:
            raise InvalidInputError(
                "columns",
                f"{name} has no column {', '.join(map(repr, missing))}; it has {', '.join(table.columns.keys())}.",
            )
        if absent := [column for column in key if column not in columns]:
            raise InvalidInputError("key", f"{', '.join(map(repr, absent))} is not among the columns to write. Add it.")
        if insert_missing:
            _check_can_insert(table, columns)
            _check_unique(inspector, table, key, columns)
    json_texts = _json_texts(engine, table)
    storers = {
        column: storer(table.columns[column], dialect, in_key=column in key, json_text=column in json_texts)
        for column in columns
    }
    if dialect in _MYSQL:
        _write_many_at_once(engine.dialect)
    build = _upsert if insert_missing else _update
    return Target(
        table,
        storers,
        build(dialect, table, key, list(columns)),
        _order(table, key, dialect),
        None if insert_missing else Lookup.by(table, key),
    )


def _let_see_vectors(dialect: Any) -> None:
    """Let SQLAlchemy look at a table with a column VECTOR(3), which it does not know: it would fail over the 3."""
    from sqlalchemy.types import UserDefinedType

    class Vector(UserDefinedType[Any]):
        cache_ok = True

        def __init__(self, length: int) -> None:
            self.length = length

        def get_col_spec(self, **_: Any) -> str:
            return f"VECTOR({self.length})"

    dialect.ischema_names = {"vector": Vector, **dialect.ischema_names}


def _write_many_at_once(dialect: Any) -> None:
    """Let SQLAlchemy name new values VALUES(label) to MySQL, as to MariaDB: its drivers send many rows in one statement
    only then. By MySQL's newer name, which SQLAlchemy prefers, each row would be a statement, and a round trip.
    """
    # Removal of VALUES() is announced since MySQL 8.0.20, for no version in particular. 9.7 has it.
    if (dialect.server_version_info or ())[:1] <= _LAST_KNOWN_MYSQL:
        dialect._requires_alias_for_on_duplicate_key = False


def split_name(name: str, param: str) -> tuple[str | None, str]:
    """Return schema and name of a table.

    :param param: what to name in an error
    """
    if not isinstance(name, str) or not name.strip():
        raise InvalidInputError(param, f"expected table or schema.table, got {name!r}.")
    check_text(name, param)
    schema, _, table = name.rpartition(".")
    return schema or None, table


def _check_names(key: Sequence[str]) -> None:
    if not key:
        raise InvalidInputError("key", f"expected a column, or a list of columns, got {key!r}.")
    if twice := sorted({name for name in key if list(key).count(name) > 1}):
        raise InvalidInputError("key", f"it names {', '.join(map(repr, twice))} more than once.")


def _json_texts(engine: Engine, table: Table) -> Collection[str]:
    """Return the columns that MariaDB has of its type JSON, which is text with a check."""
    from sqlalchemy import text

    if not getattr(engine.dialect, "is_mariadb", False):
        return ()
    query = text(
        "SELECT check_clause FROM information_schema.check_constraints "
        "WHERE constraint_schema = COALESCE(:schema, DATABASE()) AND table_name = :name"
    )
    with engine.connect() as connection:
        clauses = set(connection.execute(query, {"schema": table.schema, "name": table.name}).scalars())
    return [name for name in dict(table.columns) if f"json_valid(`{name}`)" in clauses]


def _order(table: Table, key: Sequence[str], dialect: str) -> Callable[[Mapping[str, Any]], Any] | None:
    from sqlalchemy import types as sql

    def sortable(kind: Any) -> bool:
        if isinstance(kind, sql.String):
            # By most collations two texts may be one key: sorted, the later of these would not be the last.
            if dialect in _MYSQL:
                return str(kind.collation).endswith(("_nopad_bin", "_0900_bin"))
            return dialect == "postgresql" and kind.collation is None
        return isinstance(kind, (sql.Integer, sql.Numeric, sql.Date, sql.DateTime, sql.Uuid))

    if not all(sortable(table.columns[name].type) for name in key):
        return None
    names = [f"new_{column.name}" for column in table.columns if column.name in key]
    return lambda row: tuple(row[name] for name in names)


def _check_can_insert(table: Table, columns: Collection[str]) -> None:
    needed = [
        column.name
        for column in table.columns
        if not (column.nullable or column.name in columns or column.server_default or column.identity)
        and column is not table.autoincrement_column
    ]
    if needed:
        raise InvalidInputError(
            "columns",
            f"{table.name} needs a value for {', '.join(map(repr, needed))}, which is not given. Add it, e.g. from "
            "'context', or write only to rows that are there: insert_missing=False.",
        )


def _check_unique(inspector: Inspector, table: Table, key: Sequence[str], columns: Collection[str]) -> None:
    """Refuse a key that does not tell rows apart; and, where the database cannot be told which key is meant, others."""
    unique = _unique_keys(inspector, table)
    if frozenset(key) not in unique:
        there = "; ".join(", ".join(sorted(each)) for each in unique) or "none"
        raise InvalidInputError(
            "key",
            f"{table.name} has no primary key or unique constraint on ({', '.join(key)}), so a row could not be found "
            f"again. It has: {there}. Add one: ALTER TABLE {table.name} ADD UNIQUE ({', '.join(key)}).",
        )
    if inspector.dialect.name in _MYSQL:
        for other in unique - {frozenset(key)}:
            if other <= set(columns):
                raise InvalidInputError(
                    "key",
                    f"{table.name} is also unique by ({', '.join(sorted(other))}), and {inspector.dialect.name} would "
                    "change the row that has the same there, whatever its key. Take that column out.",
                )


def _unique_keys(inspector: Inspector, table: Table) -> set[frozenset[str]]:
    where: dict[str, Any] = {"table_name": table.name, "schema": table.schema}
    found: list[Iterable[str | None]] = [inspector.get_pk_constraint(**where)["constrained_columns"]]
    found += [each["column_names"] for each in inspector.get_unique_constraints(**where)]
    found += [
        each["column_names"]
        for each in inspector.get_indexes(**where)
        # A partial index tells only some rows apart, and one of expressions no columns.
        if each["unique"] and not any(name.endswith("_where") for name in each.get("dialect_options", {}))
    ]
    keys = (frozenset(names) for names in found)
    return {frozenset(filter(None, names)) for names in keys if names and None not in names}


def _values(table: Table, columns: list[str]) -> dict[str, BindParameter[Any]]:
    """Return what stands for each column's value in a statement, under a name of its own: columns may have any name."""
    from sqlalchemy import JSON, bindparam

    values = {}
    for name in columns:
        kind = table.columns[name].type
        # Of None a JSON column would make the JSON value null, which is no NULL.
        kind = type(kind)(none_as_null=True) if isinstance(kind, JSON) else kind
        values[name] = bindparam(f"new_{name}", type_=kind)
    return values


def _upsert(dialect: str, table: Table, key: Sequence[str], columns: list[str]) -> UpdateBase:
    from sqlalchemy.dialects import mysql, postgresql, sqlite

    values = _values(table, columns)
    others = [name for name in columns if name not in key]
    if dialect in _MYSQL:
        if percent := [name for name in others or key if "%" in name]:
            raise InvalidInputError(
                "columns",
                f"MySQL's driver cannot write to {', '.join(map(repr, percent))}, for the %. Rename the column, or "
                "write only to rows that are there: insert_missing=False.",
            )
        into_mysql = mysql.insert(table).values(values)
        return into_mysql.on_duplicate_key_update({name: into_mysql.inserted[name] for name in others or key})
    # The two have the same methods, and no class in common.
    into: Any = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    into = into.values(values)
    if not others:
        into = into.on_conflict_do_nothing(index_elements=list(key))
    else:
        changes = {name: into.excluded[name] for name in others}
        into = into.on_conflict_do_update(index_elements=list(key), set_=changes)
    return cast("UpdateBase", into)


def _update(dialect: str, table: Table, key: Sequence[str], columns: list[str]) -> UpdateBase:
    values = _values(table, columns)
    others = {name: value for name, value in values.items() if name not in key}
    if not others:
        raise InvalidInputError("columns", "there is nothing to write beside the key.")
    return table.update().where(*(table.columns[name] == values[name] for name in key)).values(others)
