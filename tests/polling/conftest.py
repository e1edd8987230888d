"""A made-up batch service, and Airflow connections to it in the environment."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator

import pytest

# Before anything imports Airflow, which would write into the developer's own ~/airflow.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-polling-"))

from tests.polling.world import World

CONN_ID = "poll_test"
Connect = Callable[..., str]


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Write an Airflow connection to the environment, and return its id."""

    def write(base_url: str, password: str = "sk-first-0123456789", conn_id: str = CONN_ID, **extra: object) -> str:
        connection = {"conn_type": "openai_batches", "host": base_url, "password": password, "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))
        return conn_id

    return write


@pytest.fixture
def conn_id(world: World, connect: Connect) -> str:
    """An Airflow connection to the world."""
    return connect(world.base_url)
