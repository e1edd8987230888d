"""One real Airflow and its services for all system tests. They end with the folder: other tests need the cores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_openai_batches.emulator import Emulator
from demo.__main__ import DAGS_FOLDER
from demo.airflow import Airflow
from demo.openai_server import EXAMPLE_PRICES, OpenAIServer, start_emulator
from demo.processes import Processes
from tests.collector import Collector
from tests.conftest import API_KEY
from tests.identity import Identity
from tests.stores import GCS_ENVIRONMENT

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
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """Where Airflow sends its telemetry."""
    with Collector(tmp_path_factory.mktemp("lineage") / "events.jsonl") as collector:
        yield collector


@pytest.fixture(scope="package")
def airflow(
    processes: Processes,
    emulator: OpenAIServer,
    service: Emulator,
    identity: Identity,
    collector: Collector,
    workspace: Path,
) -> Airflow:
    """An Airflow with all example DAGs, whose connection leads to `emulator`, and those of the tests."""
    local = "airflow.dag_processing.bundles.local.LocalDagBundle"
    bundles = [{"name": name, "classpath": local, "kwargs": {"path": str(path)}} for name, path in FOLDERS.items()]
    connection = {"conn_type": "openai_batches", "host": service.base_url, "password": API_KEY}
    environment = {
        **emulator.as_airflow_connection(),
        "AIRFLOW_CONN_SERVICE": json.dumps({**connection, "extra": {"prices": EXAMPLE_PRICES}}),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
        # They do not change, and to read them all costs the processor seconds.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
        # Half a minute is what a triggerer may be silent before another takes over its triggers.
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
        **identity.environment,
        **collector.environment,
        **GCS_ENVIRONMENT,
        # Of all the identities that the tests' own user may have.
        "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
    }
    return Airflow.start(processes, workspace / "airflow", DAGS_FOLDER, env=environment)
