"""Real databases for tests: each test has one of its own, behind the Airflow connection `reviews_db`.

The servers are found as their own command lines find them: PGHOST, PGPORT, PGUSER and PGPASSWORD; MYSQL_HOST,
MYSQL_TCP_PORT, MYSQL_USER and MYSQL_PWD. Default: this machine, without a password. What is called MariaDB here may be
MySQL as well: the same tests hold on both.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

CONN_ID = "reviews_db"


@dataclass(frozen=True)
class Database:
    """An empty database.

    :param kind: ``postgresql``, ``mysql`` or ``sqlite``
    :param engine: to look into it beside Airflow
    :param connection: what leads Airflow there
    """

    kind: str
    engine: Engine
    connection: dict[str, Any]

    @property
    def is_mariadb(self) -> bool:
        """Whether a database of the kind ``mysql`` is MariaDB, and not MySQL itself."""
        with self.engine.connect() as connection:  # It is known no sooner.
            return bool(getattr(connection.dialect, "is_mariadb", False))

    def run(self, *statements: str) -> None:
        """Run statements and keep what they do."""
        with self.engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]


def postgresql_database() -> Iterator[Database]:
    """A database in the PostgreSQL server; skips without one."""
    host, port = os.environ.get("PGHOST", "127.0.0.1"), int(os.environ.get("PGPORT", "5432"))
    user, password = os.environ.get("PGUSER", "postgres"), os.environ.get("PGPASSWORD")
    connection = {"conn_type": "postgres", "host": host, "port": port, "login": user, "password": password}
    yield from _database("postgresql", connection, "postgresql+psycopg", "airflow.providers.postgres", "postgres")


def mariadb_database() -> Iterator[Database]:
    """A database in the MariaDB or MySQL server; skips without one."""
    host, port = os.environ.get("MYSQL_HOST", "127.0.0.1"), int(os.environ.get("MYSQL_TCP_PORT", "3306"))
    user, password = os.environ.get("MYSQL_USER", "root"), os.environ.get("MYSQL_PWD")
    connection = {"conn_type": "mysql", "host": host, "port": port, "login": user, "password": password}
    yield from _database("mysql", connection, "mysql+mysqldb", "airflow.providers.mysql", None)


def sqlite_database(directory: Path) -> Iterator[Database]:
    """A database in a file."""
    from sqlalchemy import create_engine

    file = directory / "reviews.sqlite"
    engine = create_engine(f"sqlite:///{file}")
    yield Database("sqlite", engine, {"conn_type": "sqlite", "host": str(file)})
    engine.dispose()


def _database(
    kind: str, connection: dict[str, Any], driver: str, provider: str, first: str | None
) -> Iterator[Database]:
    from sqlalchemy import URL, create_engine

    try:
        __import__(provider)
        where = {"host": connection["host"], "port": connection["port"], "username": connection["login"]}
        url = URL.create(driver, **where, password=connection["password"], database=first)
        server = create_engine(url, isolation_level="AUTOCOMMIT")
        server.connect().close()
    except Exception as error:  # noqa: BLE001
        reason = f"no {kind} server to test with: {type(error).__name__}: {str(error).splitlines()[0]}"
        if os.environ.get("CI_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    name = f"openai_batches_{uuid.uuid4().hex[:12]}"
    with server.connect() as admin:
        admin.exec_driver_sql(f"CREATE DATABASE {name}")
        engine = create_engine(url.set(database=name))
        try:
            yield Database(kind, engine, {**connection, "schema": name})
        finally:
            engine.dispose()
            admin.exec_driver_sql(f"DROP DATABASE {name}" + (" WITH (FORCE)" if kind == "postgresql" else ""))
    server.dispose()


def connect(database: Database, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """Let Airflow's connection `reviews_db` lead to a database.

    :param fields: of the connection, to change
    """
    monkeypatch.setenv(f"AIRFLOW_CONN_{CONN_ID.upper()}", json.dumps({**database.connection, **fields}))


@pytest.fixture
def postgresql(monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    for database in postgresql_database():
        connect(database, monkeypatch)
        yield database


@pytest.fixture
def mariadb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    for database in mariadb_database():
        connect(database, monkeypatch)
        yield database


@pytest.fixture(params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Database:
    """Each of the two servers."""
    database: Database = request.getfixturevalue(request.param)
    return database


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """Each kind of database that results can be written to."""
    if request.param != "sqlite":
        yield request.getfixturevalue(request.param)
        return
    for found in sqlite_database(tmp_path):
        connect(found, monkeypatch)
        yield found
