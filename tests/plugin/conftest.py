"""Airflow's own API server with the plugin in it, in this process, and users who may do different things."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# First of all imports of Airflow: it gives this process a home of its own.
from tests.airflow.conftest import (
    airflow_db,
    airflow_home,
    connection,
    connection_json,
    no_pauses,
    odd_extras_are_read,
    register,
    request_lines,
    run_dag,
)
from tests.plugin.auth import DAG, OTHER_DAG, USERS

if TYPE_CHECKING:
    from fastapi import FastAPI
    from httpx import Response

    from airflow_provider_openai_batches.api.client import BatchClient
    from airflow_provider_openai_batches.api.models import Batch
    from airflow_provider_openai_batches.emulator import Emulator

__all__ = ["airflow_db", "airflow_home", "connection", "no_pauses", "odd_extras_are_read", "run_dag"]

CONN_ID = "openai_batches_default"


@pytest.fixture(scope="session")
def airflow_app(airflow_db: None, airflow_home: Path) -> FastAPI:
    """The app that an API server runs."""
    from airflow.api_fastapi.app import create_app, purge_cached_app

    passwords = airflow_home / "passwords.json"
    passwords.write_text(json.dumps({name: name for name in USERS}))
    with pytest.MonkeyPatch.context() as patch:
        _be_a_server(patch, airflow_home)
        purge_cached_app()
        return create_app(apps="core")


@pytest.fixture(scope="session")
def tokens(airflow_app: FastAPI, airflow_home: Path) -> dict[str, str]:
    """Logins by user name."""
    from fastapi.testclient import TestClient

    with pytest.MonkeyPatch.context() as patch:
        _be_a_server(patch, airflow_home)
        browser = TestClient(airflow_app)
        return {
            name: browser.post("/auth/token", json={"username": name, "password": name}).json()["access_token"]
            for name in USERS
        }


def _be_a_server(patch: pytest.MonkeyPatch, airflow_home: Path) -> None:
    patch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")  # As its own command line does: connections from the database.
    patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "tests.plugin.auth.GrantingAuthManager")
    patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", ",".join(f"{name}:{role}" for name, role in USERS.items()))
    patch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", str(airflow_home / "passwords.json"))


class Browser:
    """Calls the page's API as a user does.

    :param app: Airflow's
    :param token: the user's login; None for nobody
    """

    def __init__(self, app: FastAPI, token: str | None) -> None:
        from fastapi.testclient import TestClient

        self._http = TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {token}"})
        if token is None:
            del self._http.headers["Authorization"]

    def get(self, path: str, **query: Any) -> Response:
        return self._http.get(f"/openai-batches{path}", params=query)

    def post(self, path: str, *, headers: dict[str, str] | None = None, content: Any = None, **query: Any) -> Response:
        return self._http.post(f"/openai-batches{path}", params=query, headers=headers, content=content)


@pytest.fixture
def browse(
    airflow_app: FastAPI,
    airflow_home: Path,
    tokens: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    connection: Callable[..., None],
) -> Callable[[str | None], Browser]:
    """Log in as a user, or as nobody."""
    from airflow_provider_openai_batches.plugin import account, webhooks

    _be_a_server(monkeypatch, airflow_home)
    account.forget_all()  # Each test has another emulator behind the same connection.
    webhooks.forget_all()
    return lambda name: Browser(airflow_app, None if name is None else tokens[name])


@pytest.fixture(scope="session")
def dags(airflow_db: None) -> None:
    """Two DAGs: one that most of the users may see, and one that few may."""
    from airflow import sdk
    from airflow.sdk import BaseOperator

    for dag_id in (DAG, OTHER_DAG):
        with sdk.DAG(dag_id, schedule=None) as dag:
            BaseOperator(task_id="label")
        register(dag)


@pytest.fixture
def buy(client: BatchClient, dags: None) -> Callable[..., Batch]:
    """Create a batch as a task of a DAG would, or as somebody outside Airflow."""

    def create(dag_id: str | None = DAG, *, rows: int = 3, **metadata: str) -> Batch:
        made_by = {
            "airflow_dag_id": dag_id or "",
            "airflow_run_id": "manual__2026-01-01T00:00:00+00:00",
            "airflow_task_id": "label",
            "airflow_map_index": "-1",
        }
        file = client.upload_file(lambda: _reader(request_lines(rows)), filename="rows.jsonl")
        pairs = {**(made_by if dag_id else {}), **metadata}
        return client.create_batch(file.id, "/v1/chat/completions", metadata=pairs)

    return create


def _reader(content: bytes) -> Any:
    import io

    return io.BytesIO(content)


@pytest.fixture
def second_connection(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> str:
    """Another connection to the same service."""
    monkeypatch.setenv("AIRFLOW_CONN_SECOND", connection_json(emulator, conn_type="openai"))
    return "second"


def until(holds: Callable[[], bool], within_s: float = 30) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)
