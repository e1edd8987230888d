"""The command line with an Airflow connection, as an administrator runs it on a host of Airflow."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from airflow_provider_openai_batches.cli.__main__ import main
from airflow_provider_openai_batches.emulator import Emulator
from tests.airflow.conftest import new_batch
from tests.conftest import API_KEY


@pytest.fixture
def stored_connection(airflow_db: None, emulator: Emulator) -> Iterator[None]:
    """A connection that is in the metadata database, and nowhere in the environment."""
    from airflow.models import Connection
    from airflow.utils.session import create_session

    conn = Connection(conn_id="stored", conn_type="openai_batches", host=emulator.base_url, password=API_KEY)
    with create_session() as session:
        session.add(conn)
    yield
    with create_session() as session:
        session.delete(session.merge(conn))


def test_a_connection_of_the_metadata_database_is_used(
    emulator: Emulator, connection: None, stored_connection: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    batch_id = new_batch(emulator)
    command = [sys.executable, "-m", "airflow_provider_openai_batches.cli", "list", "--json", "--conn-id", "stored"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    # Nothing of Airflow's own is between the lines.
    assert [json.loads(line)["id"] for line in ended.stdout.splitlines()] == [batch_id]


def test_a_connection_that_is_not_there_is_one_line_that_says_how_to_make_it(
    airflow_db: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # What the command sets for its process is undone here.
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    monkeypatch.setenv("AIRFLOW__LOGGING__LOGGING_LEVEL", "ERROR")
    capfd.readouterr()
    assert main(["list", "--conn-id", "nowhere"]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "airflow connections add nowhere --conn-type openai_batches" in err
