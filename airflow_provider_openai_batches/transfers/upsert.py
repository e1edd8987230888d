"""Rows into a table, by key: a row that is there is changed in the columns that are given, one that is not is added."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_openai_batches.api.errors import InvalidInputError
from airflow_provider_openai_batches.transfers.storable import storer

if TYPE_CHECKING:
    from sqlalchemy import BindParameter, Connection, Engine, Inspector, Table
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.sql.dml import UpdateBase

# To their driver these are troubles of the server: a check that does not hold (MySQL, MariaDB), and text that the
# column's character set does not have.
_MYSQL_ROW_ERRORS = (3819, 4025, 1366)
_DIALECTS = ("postgresql", "mysql", "mariadb", "sqlite")


@dataclass(frozen=True)
class Target:
    """A table that has been looked at, and what writes to it.

    :param table: as the database describes it
    :param storers: what turns values into those of each column
    """

    table: Table
    storers: Mapping[str, Callable[[Any], Any]]
    statement: UpdateBase

    def storable(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row's values as the table takes them.

        :raises NotStorableError: it does not take one of them
        """
        return {f"new_{name}": store(values[name]) for name, store in self.storers.items()}

    def write(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
        """Write rows from :meth:`storable` within a transaction.

        :return: why the database did not take some of them, by position: a foreign key or a check that does not hold
        """
        from sqlalchemy.exc import DBAPIError

        if not rows:
            return {}
        try:
            with connection.begin_nested():
                connection.execute(self.statement, rows)
        except DBAPIError as error:
            if not _is_about_a_row(error):
                raise
        else:
            return {}
        refused = {}
        for position, row in enumerate(rows):
            try:
                with connection.begin_nested():
                    connection.execute(self.statement, row)
            except DBAPIError as error:
                if not _is_about_a_row(error):
                    raise
                refused[position] = str(error.orig)
        return refused


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
    schema, table_name = split_name(name)
    try:
        with warnings.catch_warnings():
            # Of types that it does not know, such as pgvector's. It need not: see storable.py.
            warnings.simplefilter("ignore", SAWarning)
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
        _check_unique(inspect(engine), table, key, columns)
    storers = {column: storer(table.columns[column], dialect) for column in columns}
    build = _upsert if insert_missing else _update
    return Target(table, storers, build(dialect, table, key, list(columns)))


def _is_about_a_row(error: DBAPIError) -> bool:
    """Whether other rows could still be written."""
    from sqlalchemy.exc import DataError, IntegrityError, OperationalError

    if isinstance(error, OperationalError):
        code = next(iter(getattr(error.orig, "args", ())), None)
        return code in _MYSQL_ROW_ERRORS
    return isinstance(error, (DataError, IntegrityError))


def split_name(name: str) -> tuple[str | None, str]:
    """Return schema and name of a table."""
    schema, _, table = name.rpartition(".")
    return schema or None, table


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
    if inspector.dialect.name in ("mysql", "mariadb"):
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
    if dialect in ("mysql", "mariadb"):
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
