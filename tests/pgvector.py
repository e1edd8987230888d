"""A PostgreSQL that knows vectors: that of the other tests if it has the extension pgvector, else one of its own from
the package `pgserver`, which brings it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from demo.processes import HOST, Processes, claim_port, local_environment
from tests.databases import Database, connect, postgresql_database
from tests.distributed.services import unprivileged

START_TIMEOUT_S = 60


@pytest.fixture(scope="session")
def pgvector_server() -> Iterator[dict[str, str]]:
    """The environment that leads to the server; skips without one."""
    if _is_at_hand():
        yield {}
        return
    if (package := importlib.util.find_spec("pgserver")) is None or package.origin is None:
        reason = "no PostgreSQL with vectors to test with: pgserver is not installed, and the server has no pgvector"
        if os.environ.get("CI_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with _running(Path(package.origin).parent) as port:
        yield {"PGHOST": HOST, "PGPORT": str(port), "PGUSER": "postgres", "PGPASSWORD": ""}


@pytest.fixture
def pgvector(pgvector_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """An empty database with the extension."""
    for name, value in pgvector_server.items():
        monkeypatch.setenv(name, value)
    for database in postgresql_database():
        connect(database, monkeypatch)
        database.run("CREATE EXTENSION vector")
        yield database


def _is_at_hand() -> bool:
    """Whether the server of the other tests has the extension."""
    found = False
    with suppress(pytest.skip.Exception, pytest.fail.Exception):
        for database in postgresql_database():
            found = bool(database.rows("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"))
    return found


@contextmanager
def _running(package: Path) -> Iterator[int]:
    port = claim_port(None, "")
    environment = local_environment({}, without=("PG",))
    with (
        tempfile.TemporaryDirectory(prefix="pgvector-", ignore_cleanup_errors=True) as name,
        Processes(Path(name, "logs"), grace_s=0) as processes,
    ):
        home = Path(name)
        # PostgreSQL does not run as root, and no other user need be able to read this checkout.
        for folder in (package, package.with_name("pgserver.libs")):
            shutil.copytree(folder, home / folder.name, symlinks=True)
        as_user = unprivileged(home)
        programs, data = home / package.name / "pginstall" / "bin", home / "data"
        options = ("--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync")
        initdb = [*as_user, str(programs / "initdb"), "--pgdata", str(data), *options]
        processes.run("initdb", initdb, env=environment, timeout_s=START_TIMEOUT_S)
        settings = {"listen_addresses": HOST, "port": port, "unix_socket_directories": "", "fsync": "off"}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        processes.start("postgresql", [*as_user, str(programs / "postgres"), "-D", str(data), *words], env=environment)
        ready = [str(programs / "pg_isready"), "-q", "-h", HOST, "-p", str(port), "-t", "30"]
        processes.wait_for(
            lambda: os.spawnv(os.P_WAIT, ready[0], ready) == 0, timeout_s=START_TIMEOUT_S, what="PostgreSQL"
        )
        yield port
