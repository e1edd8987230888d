"""The command line with an Airflow connection, as an administrator runs it on a host of Airflow."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import quote

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


def spoken_of(value: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """What the command says, in one line, of a connection that is such a text in the environment."""
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    monkeypatch.setenv("AIRFLOW__LOGGING__LOGGING_LEVEL", "CRITICAL")
    monkeypatch.setenv("AIRFLOW_CONN_ODD", value)
    capfd.readouterr()
    assert main(["list", "--conn-id", "odd"]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "hush" not in err
    return err


HOST = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('{"conn_type": "openai_batches", "password": "hush', "is not valid JSON (Unterminated string"),
        ("{'conn_type': 'openai_batches', 'password': 'hush'}", "is not valid JSON (Expecting property name"),
        ('{"conn_type": "openai_batches", "password": "hush", "key": "hush"}', "has a field"),
        ('["openai_batches", "hush"]', "is neither JSON nor a URI"),
        ("hush", "is neither JSON nor a URI"),
        ("openai-batches://:hush/hush@", "is no URI"),
        ("openai-batches://:hush@host:hush", "is no URI"),
        ("", "is empty"),
    ],
)
def test_a_malformed_connection_of_the_environment_is_called_so_and_never_shown(
    airflow_db: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], value: str, says: str
) -> None:
    said = spoken_of(value, monkeypatch, capfd)
    assert f"The connection 'odd' is malformed: AIRFLOW_CONN_ODD {says}" in said
    assert "has no connection" not in said


@pytest.mark.usefixtures("odd_extras_are_read")
@pytest.mark.parametrize("extra", [["hush"], '["hush"]', '"hush"', "7"])
def test_an_extra_that_is_no_object_is_called_so(
    airflow_db: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], extra: object
) -> None:
    value = json.dumps({"conn_type": "openai_batches", "host": HOST, "password": "hush", "extra": extra})
    assert "connection odd: its extra has to be a JSON object" in spoken_of(value, monkeypatch, capfd)


@pytest.mark.usefixtures("odd_extras_are_read")
def test_an_extra_that_is_no_json_is_not_taken_for_an_empty_one(
    airflow_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = json.dumps({"conn_type": "openai_batches", "host": HOST, "password": "hush", "extra": '{"project": "hush'})
    monkeypatch.setenv("AIRFLOW_CONN_ODD", value)
    command = [sys.executable, "-m", "airflow_provider_openai_batches.cli", "list", "--conn-id", "odd"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    # Airflow's own complaint, with its traceback, is not among it.
    said = 'openai-batches: connection odd: its extra has to be a JSON object such as {"timeout": 60}, and is not valid'
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(said)


def test_a_connection_that_is_a_uri_is_read(
    airflow_db: None, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
    monkeypatch.setenv("AIRFLOW__LOGGING__LOGGING_LEVEL", "CRITICAL")
    port = emulator.base_url.rpartition(":")[2].partition("/")[0]
    extra = quote(json.dumps({"timeout": 5}))
    host = quote(f"http://127.0.0.1:{port}/v1", safe="")
    monkeypatch.setenv("AIRFLOW_CONN_GOOD", f"openai-batches://:{API_KEY}@{host}/?__extra__={extra}")
    assert main(["list", "--conn-id", "good"]) == 0
    assert capfd.readouterr().err.endswith("No batches.\n")
