"""Fixtures of the job engine's tests."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from tests.jobs.world import World

if TYPE_CHECKING:
    from airflow_provider_openai_batches.emulator import Emulator

BUCKET = "jobs"
S3_NEEDS = ("airflow.providers.amazon", "s3fs", "moto", "flask")


@pytest.fixture
def emulator(openai_batches_emulator: Emulator, openai_batches_clock: object) -> Emulator:
    """The emulator, whose time only the world moves."""
    return openai_batches_emulator


@pytest.fixture
def new_world(emulator: Emulator, tmp_path: Path) -> Callable[..., World]:
    """Makes jobs of the emulator, each in a directory of its own unless told otherwise."""
    made: list[World] = []

    def make(**options: object) -> World:
        location = options.pop("location", None) or tmp_path / f"job-{len(made)}"
        made.append(World(emulator.base_url, location, **options))  # type: ignore[arg-type]
        return made[-1]

    return make


@pytest.fixture
def world(new_world: Callable[..., World]) -> World:
    """A job of 25 rows in shards of 10."""
    return new_world()


def _missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        return True


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URI of a bucket on a local S3 server, which the connection `s3_test` leads to.

    One for all: Airflow keeps the file system of a connection, and would ask a server that is gone.
    """
    if missing := [module for module in S3_NEEDS if _missing(module)]:
        lacking = f"S3 needs apache-airflow-providers-amazon[s3fs] and moto[server]: no {', '.join(missing)}"
        if os.environ.get("CI_REQUIRE_SERVICES") == "1":
            pytest.fail(lacking)
        pytest.skip(lacking)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    environment = pytest.MonkeyPatch()
    extra = f'{{"endpoint_url": "{url}", "region_name": "us-east-1"}}'
    connection = f'{{"conn_type": "aws", "login": "test", "password": "test", "extra": {extra}}}'
    environment.setenv("AIRFLOW_CONN_S3_TEST", connection)
    try:
        _until_it_answers(url)
        answer = requests.put(f"{url}/{BUCKET}", timeout=60)
        answer.raise_for_status()
        yield f"s3://s3_test@{BUCKET}"
    finally:
        environment.undo()
        server.kill()
        server.wait()


def _until_it_answers(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            requests.get(f"{url}/moto-api/", timeout=60)
            return
        except requests.ConnectionError:
            assert time.monotonic() < deadline, "the S3 server does not start"
