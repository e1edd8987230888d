"""Whose fault it is that a database does not take a row: the row's own, or somebody else's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Connection

# Everything is the row's own fault but these, for what a database may have against a value has no end: types, checks,
# triggers and extensions bring errors of their own. These are about the connection, the server, locks, the statement
# (which is the same for all rows) and who may run it: another attempt, or another table, is what helps.
_POSTGRESQL_CLASSES = ("08", "25", "26", "28", "2D", "3D", "3F", "40", "42", "53", "55", "57", "58", "F0")
_POSTGRESQL_CODES = ("XX001", "XX002")  # A damaged file. XX000 is what extensions say of values.
_MYSQL_CODES = frozenset(
    # Locks, deadlocks, a row that changed meanwhile, what was stopped or took too long, a conflict within a cluster.
    {1015, 1020, 1099, 1100, 1180, 1205, 1206, 1213, 1223, 1305, 1317, 1614, 1927, 1969, 3024, 3101, 3572}
    # Disk, memory, connections, shutdown, a cluster that is not ready, read-only.
    | {1021, 1030, 1036, 1037, 1038, 1040, 1041, 1047, 1053, 1114, 1290, 1792, 1836, 4031}
    # No permission; no such table, column, view or procedure; no such statement.
    | {1044, 1045, 1054, 1064, 1142, 1143, 1146, 1227, 1356, 1370, 1449}
)
_MYSQL_CLIENT_CODES = range(2000, 3000)
_SQLITE_NAMES = frozenset(
    "SQLITE_" + name
    for name in (
        *("PERM", "BUSY", "LOCKED", "NOMEM", "READONLY", "INTERRUPT", "IOERR", "CORRUPT", "FULL", "CANTOPEN"),
        *("PROTOCOL", "SCHEMA", "MISUSE", "AUTH", "NOTADB"),
    )
)


class RefusedError(Exception):
    """What the database, or its driver, says against rows themselves."""


@contextmanager
def attempt(connection: Connection) -> Iterator[None]:
    """Let statements about some rows take effect as a whole, or not at all, within a transaction.

    :param connection: one within a transaction, which can go on after a refusal
    :raises RefusedError: it is about the rows: if it is but one, that row is at fault. Every other error is raised as
        it is, and ends the transaction
    """
    from sqlalchemy.exc import StatementError

    savepoint = connection.begin_nested()
    try:
        yield
        if connection.dialect.name == "postgresql":
            # A constraint may be looked at no sooner than at the commit, when nobody knows whose row it was.
            connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
        savepoint.commit()
    # Drivers also raise Python's own, for values that they cannot write down.
    except (StatementError, ArithmeticError, ValueError, TypeError) as error:
        if not _is_about_rows(error, connection.dialect.name):
            raise
        savepoint.rollback()
        raise RefusedError(str(getattr(error, "orig", None) or error)) from error


def _is_about_rows(error: Exception, dialect: str) -> bool:
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError, StatementError

    if not isinstance(error, DBAPIError):
        return not (isinstance(error, StatementError) and isinstance(error.orig, SQLAlchemyError))
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return False
    orig: Any = error.orig
    if dialect == "sqlite":
        name = getattr(orig, "sqlite_errorname", "")
        # Of a table that is gone it says no more than SQLITE_ERROR, as of JSON that is none.
        return "_".join(name.split("_")[:2]) not in _SQLITE_NAMES and not str(orig).startswith("no such ")
    if dialect == "postgresql":
        code = getattr(orig, "sqlstate", None) or getattr(orig, "pgcode", None)
        if code is None:  # The driver's own: a value that it cannot write down, or a connection that is gone.
            return not isinstance(error, OperationalError)
        return code[:2] not in _POSTGRESQL_CLASSES and code not in _POSTGRESQL_CODES
    code = next(iter(orig.args), None)
    return code not in _MYSQL_CODES and not (isinstance(code, int) and code in _MYSQL_CLIENT_CODES)
