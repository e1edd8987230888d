"""One real Airflow and its services for all system tests. They end with the folder: other tests need the cores."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from airflow_provider_openai_batches.emulator import Emulator
from demo.__main__ import DAGS_FOLDER
from demo.airflow import Airflow
from demo.openai_server import EXAMPLE_PRICES, OpenAIServer, start_emulator
from demo.processes import HOST, Processes, claim_port, local_environment
from tests.conftest import API_KEY
from tests.identity import Identity
from tests.system.bucket import Bucket

NewService = Callable[..., Emulator]
TOKEN = "token-of-this-machine-0123456789"
FOLDERS = {"examples": DAGS_FOLDER, "tests": Path(__file__).with_name("dags")}


@pytest.fixture(scope="package")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AIRFLOW_HOME, and the logs of all processes."""
    return tmp_path_factory.mktemp("system")


@pytest.fixture(scope="package")
def processes(workspace: Path) -> Iterator[Processes]:
    with Processes(workspace / "logs", grace_s=0) as processes:
        yield processes


@pytest.fixture(scope="package")
def emulator(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> OpenAIServer:
    """A running emulator whose batches take eight seconds: long enough to see a task deferred."""
    return start_emulator(processes, tmp_path_factory.mktemp("emulator"), batch_seconds=8)


@pytest.fixture(scope="package")
def service() -> Iterator[Emulator]:
    """An emulator whose batches get on only when a test lets them, behind the connection `service`."""
    with Emulator(speed=0, api_key=API_KEY) as emulator:
        yield emulator


@pytest.fixture(scope="package")
def identity() -> Iterator[Identity]:
    """Who Airflow's machine is to Azure."""
    with Identity(TOKEN) as identity:
        yield identity


@pytest.fixture(scope="package")
def airflow(
    processes: Processes, emulator: OpenAIServer, service: Emulator, identity: Identity, workspace: Path
) -> Airflow:
    """An Airflow with all example DAGs, whose connection leads to `emulator`, and those of the tests."""
    local = "airflow.dag_processing.bundles.local.LocalDagBundle"
    bundles = [{"name": name, "classpath": local, "kwargs": {"path": str(path)}} for name, path in FOLDERS.items()]
    connection = {"conn_type": "openai_batches", "host": service.base_url, "password": API_KEY}
    environment = {
        **emulator.as_airflow_connection(),
        "AIRFLOW_CONN_SERVICE": json.dumps({**connection, "extra": {"prices": EXAMPLE_PRICES}}),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
        # Half a minute is what a triggerer may be silent before another takes over its triggers.
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
        **identity.environment,
        # Of all the identities that the tests' own user may have.
        "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
    }
    return Airflow.start(processes, workspace / "airflow", DAGS_FOLDER, env=environment)


@pytest.fixture(scope="module")
def new_service(airflow: Airflow) -> Iterator[NewService]:
    """Start an emulator behind a new connection of Airflow's. A batch takes some seconds, unless options say otherwise.

    ``start(conn_id, extra, **options of the emulator)``
    """
    with ExitStack() as stack:

        def start(conn_id: str, extra: dict[str, object] | None = None, **options: object) -> Emulator:
            usual = {"api_key": API_KEY, "speed": 1, "batch_seconds": 2, "keep_requests": True}
            emulator = stack.enter_context(Emulator(**usual | options))
            connection = {"connection_id": conn_id, "conn_type": "openai_batches", "host": emulator.base_url}
            if (extra or {}).get("auth") != "entra":
                connection["password"] = API_KEY
            airflow.api("POST", "/connections", {**connection, "extra": json.dumps(extra or {})})
            return emulator

        yield start


@pytest.fixture(scope="package")
def s3(airflow: Airflow) -> Iterator[Bucket]:
    """An empty bucket of a local S3 server, behind the connection `our_s3`."""
    try:
        for module in ("airflow.providers.amazon", "s3fs", "moto.server"):
            __import__(module)
    except ImportError as error:
        if os.environ.get("CI_REQUIRE_SERVICES") == "1":
            pytest.fail(f"S3 cannot be tested: {error}")
        pytest.skip(f"S3 cannot be tested: {error}")
    url = f"http://{HOST}:{claim_port(None, '')}"
    argv = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", url.rpartition(":")[2]]
    with Processes(airflow.processes.log_dir / "s3", grace_s=0) as processes:
        processes.start("s3", argv, env=local_environment({}))
        processes.wait_for(lambda: _answers(url), timeout_s=60, what="the S3 server")
        bucket = Bucket.create(url)
        airflow.api("POST", "/connections", bucket.connection)
        yield bucket


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/moto-api/", timeout=60).ok
    except requests.ConnectionError:
        return False
