"""The fixtures in a user's project, in a pytest process of its own."""

from __future__ import annotations

import os
import pdb
from collections.abc import Callable

import pytest

pytest_plugins = ["pytester"]

Run = Callable[..., pytest.RunResult]

CLIENT = """
import json, os, socket, sys, threading, time
import pytest
import requests

def call(emulator, method, path, **options):
    headers = {"Authorization": f"Bearer {emulator.api_key}"}
    return requests.request(method, emulator.base_url + path, headers=headers, timeout=10, **options)

def line(number):
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}

def submit(emulator, rows=3, **metadata):
    content = "".join(json.dumps(line(number)) + "\\n" for number in range(rows))
    files = {"file": ("in.jsonl", content)}
    sent = call(emulator, "POST", "/files", files=files, data={"purpose": "batch"})
    batch = {"input_file_id": sent.json()["id"], "endpoint": line(0)["url"], "completion_window": "24h",
             "metadata": metadata}
    return call(emulator, "POST", "/batches", json=batch).json()["id"]

def look(emulator, batch_id):
    return call(emulator, "GET", f"/batches/{batch_id}").json()

"""


def test_a_project_that_installed_the_package_has_the_fixtures(run: Run) -> None:
    result = run(
        CLIENT
        + """
def test(openai_batches_emulator, openai_batches_connection):
    batch = look(openai_batches_emulator, submit(openai_batches_emulator))
    assert batch["status"] == "completed", "it is over when it is first looked at"
    assert openai_batches_emulator.bought() == {"row-0": 1, "row-1": 1, "row-2": 1}
    assert openai_batches_emulator.calls[-1] == ("GET", "/v1/batches/{batch_id}", 200)
    assert [file["purpose"] for file in openai_batches_emulator.files()] == ["batch_output", "batch"]
    connection = json.loads(os.environ["AIRFLOW_CONN_OPENAI_BATCHES_DEFAULT"])
    assert (connection["host"], connection["password"]) == (
        openai_batches_emulator.base_url, openai_batches_emulator.api_key)
    assert requests.get(f"{openai_batches_emulator.base_url}/batches", timeout=10).status_code == 401
"""
    )
    result.assert_outcomes(passed=1)


def test_who_uses_no_fixture_pays_for_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is imported, started or changed."""
    # From Python 3.14 on pytest brings asyncio, by way of pdb.
    heavy = {"airflow", "aiohttp", "requests", "pydantic", "msgspec", "sqlite3"}
    heavy |= set() if hasattr(pdb, "asyncio") else {"asyncio"}
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # other plugins import what they need
    for name in [name for name in os.environ if name.startswith("AIRFLOW_CONN_")]:
        monkeypatch.delenv(name)  # of a server that other tests of this process use
    result = run(f"""
import os, sys, threading

def test():
    assert "airflow_provider_openai_batches.testing.plugin" in sys.modules
    assert not {heavy!r} & set(sys.modules)
    ours = {{name for name in sys.modules if name.startswith("airflow_provider_openai_batches")}}
    package = "airflow_provider_openai_batches"
    expected = {{"", ".provider_info", ".testing", ".testing.plugin"}}
    assert ours == {{package + name for name in expected}}
    assert threading.active_count() == 1
    assert not [name for name in os.environ if name.startswith("AIRFLOW_CONN_")]
""", "-p", "openai_batches")  # fmt: skip
    result.assert_outcomes(passed=1)


def test_the_fixtures_import_no_airflow(run: Run) -> None:
    """A connection is a variable: whoever tests without an Airflow needs none."""
    result = run("""
import sys

def test(openai_batches_emulator, openai_batches_clock, openai_batches_connection):
    openai_batches_clock.advance(hours=1)
    assert "aiohttp" in sys.modules
    assert "airflow" not in sys.modules
""")
    result.assert_outcomes(passed=1)


def test_clock_brings_a_batch_to_its_expiry_at_once(run: Run) -> None:
    result = run(
        CLIENT
        + """
@pytest.mark.openai_batches_emulator(batch_seconds=48 * 3600)
def test(openai_batches_emulator, openai_batches_clock):
    batch = submit(openai_batches_emulator, rows=10)
    began, moment = time.monotonic(), openai_batches_clock.now
    openai_batches_clock.advance(hours=23, minutes=59)
    assert look(openai_batches_emulator, batch)["status"] == "in_progress"
    openai_batches_clock.advance(minutes=2)
    expired = look(openai_batches_emulator, batch)
    assert (expired["status"], expired["expires_at"] - expired["created_at"]) == ("expired", 24 * 3600)
    assert expired["request_counts"] == {"total": 10, "completed": 4, "failed": 0}
    assert sum(openai_batches_emulator.bought().values()) == 4
    assert openai_batches_clock.now - moment == 24 * 3600 + 60
    assert time.monotonic() - began < 1
"""
    )
    result.assert_outcomes(passed=1)


def test_time_passes_with_looks_unless_the_test_has_the_clock(run: Run) -> None:
    result = run(
        CLIENT
        + """
def test_with_the_clock(openai_batches_emulator, openai_batches_clock):
    batch = submit(openai_batches_emulator)
    assert {look(openai_batches_emulator, batch)["status"] for _ in range(20)} == {"validating"}
    openai_batches_clock.advance(minutes=1)
    cancelled = call(openai_batches_emulator, "POST", f"/batches/{batch}/cancel")
    assert cancelled.json()["status"] == "cancelling"
    openai_batches_clock.seconds_per_look = 2
    assert look(openai_batches_emulator, batch)["status"] == "cancelled"

@pytest.mark.openai_batches_emulator(speed=100_000)
def test_with_the_clock_and_a_speed(openai_batches_emulator, openai_batches_clock):
    began = openai_batches_clock.now
    time.sleep(0.01)
    assert openai_batches_clock.now == began

@pytest.mark.openai_batches_emulator(batch_seconds=1.5 * 3600)
def test_without(openai_batches_emulator):
    batch = submit(openai_batches_emulator)
    shown = [look(openai_batches_emulator, batch) for _ in range(2)]
    assert [one["status"] for one in shown] == ["in_progress", "completed"]
    assert openai_batches_emulator.now - shown[0]["created_at"] == 2 * 3600
"""
    )
    result.assert_outcomes(passed=3)


def test_nothing_is_left_after_a_test(run: Run, project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(project.mkdir("scratch")))
    result = run(
        CLIENT
        + """
import tempfile
left = {}

@pytest.mark.parametrize("fails", [False, True])
def test_uses_all(openai_batches_emulator, openai_batches_clock, openai_batches_connection, fails):
    batch = submit(openai_batches_emulator)
    openai_batches_clock.advance(hours=1)
    output = look(openai_batches_emulator, batch)["output_file_id"]
    assert call(openai_batches_emulator, "GET", f"/files/{output}/content").ok
    left["port"] = int(openai_batches_emulator.base_url.split(":")[2].split("/")[0])
    left["environment"] = set(os.environ)
    assert threading.active_count() > 1
    assert os.listdir(tempfile.gettempdir())
    assert not fails

def test_finds_nothing():
    assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.1", left["port"])) != 0
    assert left["environment"] - set(os.environ) >= {"AIRFLOW_CONN_OPENAI_BATCHES_DEFAULT", "no_proxy"}
    assert os.listdir(tempfile.gettempdir()) == []
""",
        "-p", "no:xdist", "-p", "no:timeout",
    )  # fmt: skip
    result.assert_outcomes(passed=2, failed=1)


def test_connections_have_the_id_and_fields_of_the_test(run: Run) -> None:
    result = run("""
import json, os

def test(openai_batches_connection, openai_batches_emulator, monkeypatch):
    assert openai_batches_connection("llm", conn_type="openai", extra={"prices": {}}) == "llm"
    connection = json.loads(os.environ["AIRFLOW_CONN_LLM"])
    assert connection["host"] == openai_batches_emulator.base_url
    assert (connection["conn_type"], connection["extra"]) == ("openai", {"prices": {}})
    assert json.loads(os.environ["AIRFLOW_CONN_OPENAI_BATCHES_DEFAULT"])["conn_type"] == "openai_batches"
    openai_batches_connection(password="sk-other")
    assert json.loads(os.environ["AIRFLOW_CONN_OPENAI_BATCHES_DEFAULT"])["password"] == "sk-other"
""")
    result.assert_outcomes(passed=1)


def test_a_test_that_undoes_its_patches_keeps_its_connection(run: Run) -> None:
    result = run("""
import os

def test(monkeypatch, openai_batches_connection):
    monkeypatch.undo()
    assert "AIRFLOW_CONN_OPENAI_BATCHES_DEFAULT" in os.environ

def test_after():
    assert "AIRFLOW_CONN_OPENAI_BATCHES_DEFAULT" not in os.environ
""")
    result.assert_outcomes(passed=2)


def test_a_proxy_is_not_asked_for_the_emulator(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    result = run(
        CLIENT
        + """
def test(openai_batches_emulator, openai_batches_connection):
    assert os.environ["no_proxy"] == "intranet.example,127.0.0.1"
    assert look(openai_batches_emulator, submit(openai_batches_emulator))["status"] == "completed"
"""
    )
    result.assert_outcomes(passed=1)


def test_options_are_set_for_a_module_and_changed_for_a_test(run: Run) -> None:
    result = run(
        CLIENT
        + """
pytestmark = pytest.mark.openai_batches_emulator(api_key="right", seconds_per_look=130)

@pytest.mark.openai_batches_emulator(seconds_per_look=1)
def test_both(openai_batches_emulator):
    key = {"Authorization": "Bearer right"}
    began = openai_batches_emulator.now
    url = f"{openai_batches_emulator.base_url}/batches"
    assert [requests.get(url, headers=each, timeout=10).status_code for each in ({}, key)] == [401, 200]
    assert openai_batches_emulator.now - began == 1

@pytest.mark.openai_batches_emulator(3, sped=3)
def test_misspelled(openai_batches_emulator):
    pass
"""
    )
    result.assert_outcomes(passed=1, errors=1)
    refused = "the marker openai_batches_emulator does not take 3, sped; its options are, by name:"
    result.stdout.fnmatch_lines([f"{refused} data_dir, api_key, speed,*"])


def test_processes_of_xdist_have_an_emulator_each(run: Run) -> None:
    pytest.importorskip("xdist")
    result = run(
        CLIENT
        + """
@pytest.mark.parametrize("number", range(4))
def test(openai_batches_emulator, number):
    look(openai_batches_emulator, submit(openai_batches_emulator, rows=number + 1))
    assert len(openai_batches_emulator.batches()) == 1
    assert len(openai_batches_emulator.bought()) == number + 1
""",
        "-n", "2",
    )  # fmt: skip
    result.assert_outcomes(passed=4)


def test_what_is_missing_is_named(run: Run, project: pytest.Pytester) -> None:
    (project.path / "site" / "aiohttp.py").write_text("raise ImportError('not installed')")
    project.syspathinsert(project.path / "site")
    result = run("def test(openai_batches_emulator): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(['*needs aiohttp: pip install "airflow-provider-openai-batches?testing?"*'])


def test_what_was_bought_is_known_after_the_files_are_gone(run: Run) -> None:
    result = run(
        CLIENT
        + """
from airflow_provider_openai_batches.testing import faults

def test(openai_batches_emulator):
    openai_batches_emulator.add_fault(faults.row_fails("row-1"))
    openai_batches_emulator.add_fault(faults.queue_full())
    submit(openai_batches_emulator)
    first = look(openai_batches_emulator, submit(openai_batches_emulator, run="a"))
    running = submit(openai_batches_emulator, rows=1, run="b")
    openai_batches_emulator.advance(60)
    for file in openai_batches_emulator.files():
        call(openai_batches_emulator, "DELETE", f"/files/{file['id']}")
    assert openai_batches_emulator.files() == []
    received = openai_batches_emulator.requests()
    shown = [(one.custom_id, one.metadata, one.billed) for one in received]
    a, b = {"run": "a"}, {"run": "b"}
    assert shown == [("row-0", a, True), ("row-1", a, False), ("row-2", a, True), ("row-0", b, False)]
    assert {one.batch_id for one in received} == {first["id"], running}
    assert received[0].body["messages"][0]["content"] == "hello"
    look(openai_batches_emulator, running)
    assert openai_batches_emulator.bought() == {"row-0": 2, "row-2": 1}
"""
    )
    result.assert_outcomes(passed=1)
