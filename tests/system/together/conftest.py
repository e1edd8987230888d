"""Runs that go on beside each other: all that the chosen tests are about begin before the first is waited for."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_openai_batches.emulator import Emulator
from airflow_provider_openai_batches.emulator.dialects import DIALECTS
from airflow_provider_openai_batches.testing import faults
from demo.airflow import Airflow
from tests.conftest import API_KEY
from tests.databases import Database, mariadb_database, sqlite_database
from tests.stores import Bucket, local_bucket
from tests.system.conftest import TOKEN
from tests.system.together.run import Run

Start = Callable[..., Run]

# The first has the longest way.
BEGIN = ["slow", "with_cache", "from_bucket", "sinks", "at_service", "with_identity"]
SERVICES = [name for name in DIALECTS if name != "openai"]
# Two clouds' providers bring a hundred packages, so only the venv of `make test-clouds` has them; it names these.
STORES = os.environ.get("TEST_STORES", "s3").split(",")
STREAMING = ["doubleword"]
WITH_IDENTITY = ["azure"]
PRICES = {"gpt-4o-mini": {"input": 10.0, "output": 20.0}}
TICKETS = [f"ticket-{number}" for number in range(25)]
REVIEWED = {number: f"2026-11-{19 + number // 4}" for number in range(12)}
REFUSED = 5


@pytest.fixture(scope="package", autouse=True)
def together(request: pytest.FixtureRequest) -> None:
    """Begin all runs that are wanted. One that cannot be begun is the affair of its own tests."""
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    for name in BEGIN:
        if name in wanted:
            with contextlib.suppress(pytest.skip.Exception, pytest.fail.Exception):
                request.getfixturevalue(name)


@pytest.fixture(scope="package")
def start(airflow: Airflow) -> Iterator[Start]:
    """Start an emulator behind a new connection, and a run of a DAG whose job goes there.

    ``start(dag_id, conn_id, params, extra of the connection, **options of the emulator)``
    """
    with contextlib.ExitStack() as stack:

        def start(
            dag_id: str, conn_id: str, params: dict[str, str], extra: dict[str, Any] | None = None, **options: Any
        ) -> Run:
            usual = {"api_key": API_KEY, "speed": 1, "batch_seconds": 2, "keep_requests": True}
            service = stack.enter_context(Emulator(**usual | options))
            extra = {"dialect": service.dialect.removesuffix("-classic"), **(extra or {})}
            connection = {"connection_id": conn_id, "conn_type": "openai_batches", "host": service.base_url}
            if extra.get("auth") != "entra":
                connection["password"] = API_KEY
            airflow.api("POST", "/connections", {**connection, "extra": json.dumps(extra)})
            return Run.begin(airflow, service, dag_id, {**params, "conn_id": conn_id})

        yield start


@pytest.fixture(scope="package")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="package")
def slow(start: Start, directory: Path) -> dict[str, Run]:
    """A run at each service that streams, whose batches stand still."""
    options: dict[str, Any] = {"speed": 0, "batch_seconds": 120}
    return {
        name: start("anywhere", f"slow-{name}", {"directory": f"{directory}/slow-{name}"}, dialect=name, **options)
        for name in STREAMING
    }


@pytest.fixture(scope="package")
def at_service(start: Start, directory: Path) -> dict[str, Run]:
    """A run at each service."""
    return {name: start("anywhere", name, {"directory": f"{directory}/{name}"}, dialect=name) for name in SERVICES}


@pytest.fixture(scope="package")
def with_identity(start: Start, directory: Path) -> dict[str, Run]:
    """A run at each service that knows the machine; its connection has no key."""
    options: dict[str, Any] = {"extra": {"auth": "entra"}, "api_key": TOKEN}
    return {
        name: start("anywhere", f"entra-{name}", {"directory": f"{directory}/entra-{name}"}, dialect=name, **options)
        for name in WITH_IDENTITY
    }


@pytest.fixture(scope="package")
def buckets(airflow: Airflow) -> Iterator[dict[str, Bucket]]:
    """An empty bucket of each store, behind a connection."""
    with contextlib.ExitStack() as stack:
        found = {name: stack.enter_context(local_bucket(name, airflow.processes.log_dir)) for name in STORES}
        for bucket in found.values():
            airflow.api("POST", "/connections", {"connection_id": bucket.conn_id, **bucket.connection})
        yield found


@pytest.fixture(scope="package")
def from_bucket(start: Start, buckets: dict[str, Bucket]) -> dict[str, Run]:
    """A run for each store, whose rows are in its bucket, and whose results go there."""
    rows = [{"custom_id": name, "prompt": f"What is {name}?"} for name in TICKETS]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return {
        name: start(
            "in_bucket",
            f"from_{name}",
            {"source": bucket.put("in/rows.jsonl", lines), "results": f"{bucket.uri}/out"},
        )
        for name, bucket in buckets.items()
    }


@pytest.fixture(scope="package")
def with_cache(start: Start, buckets: dict[str, Bucket]) -> dict[str, Run]:
    """A run for each store, whose job and answer cache are there; two rows of its batch fail in a way that may pass.

    The batch takes long enough to be looked at while the task is deferred.
    """
    passing = [faults.row_fails(f"row-{number}", 500) for number in (3, 7)]
    options: dict[str, Any] = {"faults": passing, "extra": {"prices": PRICES}, "batch_seconds": 8}
    return {
        name: start("reuse", f"with_cache_in_{name}", {"directory": f"{bucket.uri}/reuse"}, **options)
        for name, bucket in buckets.items()
    }


@pytest.fixture(scope="package")
def databases(airflow: Airflow, directory: Path) -> Iterator[dict[str, Database]]:
    """A MariaDB and a SQLite, behind the connections `our_mariadb` and `our_sqlite`."""
    for module in ("airflow.providers.sqlite", "pyarrow"):
        pytest.importorskip(module)
    for mariadb in mariadb_database():
        for sqlite in sqlite_database(directory):
            found = {"mariadb": mariadb, "sqlite": sqlite}
            for name, database in found.items():
                airflow.api("POST", "/connections", {"connection_id": f"our_{name}", **database.connection})
            yield found


@pytest.fixture(scope="package")
def sinks(start: Start, databases: dict[str, Database], directory: Path) -> Run:
    """A run that reads the reviews of two of three days, one of which is refused, and stores the answers."""
    for database in databases.values():
        # What is there already is changed, but for a column that is not ours.
        database.run(
            "CREATE TABLE labels (review_id INTEGER PRIMARY KEY, day DATE, label TEXT, note VARCHAR(20))",
            "INSERT INTO labels VALUES (4, '2026-01-01', 'old', 'mine')",
        )
    rows = ", ".join(f"({number}, '{day}', 'Review {number} ☕')" for number, day in REVIEWED.items())
    databases["mariadb"].run(
        "CREATE TABLE reviews (id INTEGER PRIMARY KEY, day DATE, review TEXT)", f"INSERT INTO reviews VALUES {rows}"
    )
    refusal = faults.row_fails(str(REFUSED), 400, code="invalid_value", message="no")
    return start("sinks", "behind_sinks", {"directory": f"{directory}/sinks"}, faults=[refusal])
