"""One real Airflow and one emulator for all system tests. They end with the folder: other tests need the cores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.__main__ import DAGS_FOLDER
from demo.airflow import Airflow
from demo.openai_server import OpenAIServer, start_emulator
from demo.processes import Processes


@pytest.fixture(scope="package")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with Processes(tmp_path_factory.mktemp("logs"), grace_s=0) as processes:
        yield processes


@pytest.fixture(scope="package")
def emulator(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> OpenAIServer:
    """A running emulator whose batches take eight seconds: long enough to see a task deferred."""
    return start_emulator(processes, tmp_path_factory.mktemp("emulator"), batch_seconds=8)


@pytest.fixture(scope="package")
def airflow(processes: Processes, emulator: OpenAIServer, tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    """A running Airflow with all example DAGs, its connection `openai_batches_default` pointing to the emulator."""
    home = tmp_path_factory.mktemp("system") / "airflow"
    return Airflow.start(processes, home, DAGS_FOLDER, env=emulator.as_airflow_connection())
